"""What the names of labels say of left and right: names in, pairs and questions out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

SIDES = (
    ("left", "right"),
    ("l", "r"),
    ("lt", "rt"),
    ("lh", "rh"),
    ("links", "rechts"),
    ("linke", "rechte"),
    ("linker", "rechter"),
    ("linkes", "rechtes"),
    ("sin", "dex"),
    ("sin", "dx"),
    ("sx", "dx"),
    ("os", "od"),
    ("li", "re"),
    ("sinister", "dexter"),
    ("sinistra", "destra"),
    ("sinistro", "destro"),
    ("gauche", "droite"),
    ("gauche", "droit"),
    ("izquierda", "derecha"),
    ("izquierdo", "derecho"),
    ("esquerda", "direita"),
    ("esquerdo", "direito"),
    ("lewa", "prawa"),
    ("lewy", "prawy"),
    ("lewe", "prawe"),
    ("leva", "prava"),
    ("levá", "pravá"),
    ("levý", "pravý"),
    ("venstre", "højre"),
    ("venstre", "høyre"),
    ("vänster", "höger"),
    ("vasen", "oikea"),
    ("sol", "sağ"),
    ("bal", "jobb"),
    ("левая", "правая"),
    ("левый", "правый"),
    ("левое", "правое"),
    ("좌", "우"),
    ("왼쪽", "오른쪽"),
    ("左", "右"),
)
"""Words that name a side, compared without case as whole words between ``_ - . space`` and brackets, or as ``KidneyL``."""

GLUED_SIDES = (
    ("left", "right"),
    ("links", "rechts"),
    ("linke", "rechte"),
    ("lewa", "prawa"),
    ("venstre", "højre"),
    ("venstre", "høyre"),
    ("vänster", "höger"),
    ("좌", "우"),
    ("왼쪽", "오른쪽"),
    ("左", "右"),
    ("l", "r"),
)
"""Beginnings and ends of words that name a side where the other word of the pair is there too."""
SHORTEST_STEM = 3
"""Letters that a glued l or r must leave: ``LKidney`` is a left kidney, but ``LV`` is a ventricle of the heart."""


def left_right_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs (left, right) of names that differ in one word that names a side, wherever it stands.

    >>> left_right_pairs(("background", "Left Kidney", "kidney", "right kidney"))
    ((1, 3),)
    >>> left_right_pairs(("background", "KidneyR", "KidneyL", "lparotid", "rparotid"))
    ((2, 1), (3, 4))
    """
    found: dict[tuple[tuple[str, ...], int], tuple[list[int], list[int]]] = {}
    for index, name in enumerate(names):
        for stem, kind, is_right in _readings(words_of(name)):
            found.setdefault((stem, kind), ([], []))[is_right].append(index)
    pairs = {(left, right) for lefts, rights in found.values() for left in lefts[:1] for right in rights[:1] if left != right}
    return tuple(sorted(pairs))


def _readings(words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    """Each way to read words as a side and a stem: the stem, which pair of words, and whether it is the right one."""
    for place, word in enumerate(words):
        rest = (words[:place], words[place + 1 :])
        for kind, pair in enumerate(SIDES):
            if word in pair:
                yield (*rest[0], *rest[1]), kind, word == pair[1]
        for kind, pair in enumerate(GLUED_SIDES, len(SIDES)):
            for side in pair:
                for stem in _unglued(word, side):
                    yield (*rest[0], stem, *rest[1]), kind, side == pair[1]


def _unglued(word: str, side: str) -> Iterator[str]:
    shortest = SHORTEST_STEM if side in ("l", "r") else 1
    if len(word) - len(side) >= shortest:
        if word.startswith(side):
            yield f"{word.removeprefix(side)} "  # a space tells beginnings from ends
        if word.endswith(side):
            yield word.removesuffix(side)


def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in lower case; a capital letter after a small one begins a word.

    >>> words_of("leftKidney_(cyst)"), words_of("LKidney"), words_of("rib_L_10")
    (('left', 'kidney', 'cyst'), ('l', 'kidney'), ('rib', 'l', '10'))
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return tuple(word for word in re.split(r"[\s_\-.,;:/+()\[\]]+", apart.lower()) if word)


SIDE_WORDS = frozenset(word for pair in SIDES for word in pair)


def names_a_side(name: str) -> bool:
    """Whether a whole word of a name, beside others, says left or right.

    >>> names_a_side("left kidney"), names_a_side("kidney_l"), names_a_side("cleft"), names_a_side("R")
    (True, True, False, False)
    """
    words = words_of(name)
    return len(words) > 1 and any(word in SIDE_WORDS for word in words)


_PLACEHOLDER = re.compile(
    r"(label|labels|lbl|organ|class|cls|structure|struct|roi|region|object|obj|segment|seg|segmentation|mask|tissue|foreground|fg|target|"
    r"part|item|value|val|category|cat|color|colour|index|idx|id|no|nr|number|name|unnamed|untitled|unknown|new|default|channel)*([a-z]?\d*|\d+[a-z])"
)


def says_nothing(name: str) -> bool:
    """Whether a name is a number with or without a word such as label or organ: nobody has said what it is.

    >>> [says_nothing(name) for name in ("label_2", "Organ 1", "7", "b", "roi", "liver", "LV", "L5 vertebra", "spleen_1")]
    [True, True, True, True, True, False, False, False, False]
    """
    return _PLACEHOLDER.fullmatch("".join(words_of(name))) is not None


def may_be_twins(one: str, other: str) -> bool:
    """Whether two names leave open that the labels are left and right of the same: one says nothing, they differ in a number, in one
    word of several (sides are called otherwise in other languages), in an l and an r at the beginning or the end, or in the beginning or
    the end of one long word.

    >>> may_be_twins("label_1", "liver"), may_be_twins("kidney_1", "kidney_2"), may_be_twins("kidney a", "kidney b")
    (True, True, True)
    >>> may_be_twins("lewa nerka", "prawa nerka"), may_be_twins("LK", "RK"), may_be_twins("kidney_g", "kidney_d")
    (True, True, True)
    >>> may_be_twins("vasenkeuhko", "oikeakeuhko"), may_be_twins("innercore", "outercore")
    (True, False)
    >>> may_be_twins("liver", "spleen"), may_be_twins("left kidney", "left lung")
    (False, False)
    """
    if says_nothing(one) or says_nothing(other):
        return True
    return _without_numbers(one) == _without_numbers(other) or _differ_in_a_side(words_of(one), words_of(other))


def _differ_in_a_side(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether one word alone differs, and it may be a side: beside other words, none of which is a side already, or as l and r in it."""
    different = [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]]
    if len(one) != len(other) or len(different) != 1:
        return False
    first, second = different[0]
    if len(one) > 1:
        return not (set(one) & set(other) & SIDE_WORDS or {first, second} <= OTHER_PLACES)
    if {first[0] + second[0], first[-1] + second[-1]} & {"lr", "rl"} and (first[1:] == second[1:] or first[:-1] == second[:-1]):
        return True
    return _share_a_stem(first, second)


LEAST_STEM = 0.5
"""Of the longer of two words: ``lewanerka`` and ``prawanerka`` share 0.7 of it, ``liver`` and ``spleen`` nothing."""


def _share_a_stem(first: str, second: str) -> bool:
    """Whether two words end alike, or begin alike, and what is before or behind names no other kind of place."""
    stem = max(_common_start(first, second), _common_start(first[::-1], second[::-1])[::-1], key=len)
    if len(stem) < LEAST_STEM * max(len(first), len(second)) or stem in (first, second):
        return False
    return not all(any(word.startswith(place) or word.endswith(place) for place in OTHER_PLACES) for word in (first, second))


def _common_start(first: str, second: str) -> str:
    return "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def phrases(text: str) -> frozenset[str]:
    """Names that are listed with commas between."""
    return frozenset(text.split(", "))


OTHER_PLACES = phrases(
    "inner, outer, upper, middle, lower, anterior, posterior, superior, inferior, medial, lateral, proximal, distal, dorsal, ventral, "
    "cranial, caudal, central, peripheral, deep, superficial, gray, grey, white, internal, external, enhancing, edema, necrosis"
)
"""Words that tell parts from each other otherwise than by side."""


def _without_numbers(name: str) -> tuple[str, ...]:
    words = (re.sub(r"\d+", "", word) for word in words_of(name))
    return tuple(word for word in words if len(word) > 1)


PAIRED_ORGANS = phrases(
    "kidney, lung, parotid, submandibular, adrenal, femur, femoral, hip, humerus, humeral, scapula, clavicle, clavicula, "
    "tibia, fibula, patella, radius, ulna, eye, eyeball, cochlea, ovary, testis, testicle, breast, hippocampus, amygdala, "
    "thalamus, caudate, putamen, pallidum, ureter, tonsil, knee, shoulder, hand, foot, ankle, wrist, elbow, ear"
)
"""Organs of which a body has two: a label of this name that is always on one side is one of the two."""
LESION_WORDS = phrases("tumor, tumour, lesion, cyst, nodule, cancer, metastasis, metastases, stone, stones, mass, fracture, implant")
"""What may be in either organ: it says nothing of sides that it was on one side so far."""


def names_one_of_two(name: str) -> bool:
    """Whether a name is that of a paired organ, without a side.

    >>> names_one_of_two("kidney"), names_one_of_two("Lungs"), names_one_of_two("kidney tumor"), names_one_of_two("left kidney")
    (True, True, False, False)
    """
    words = {word.removesuffix("s") if len(word) > 4 and word != "testis" else word for word in words_of(name)}
    return bool(words & PAIRED_ORGANS) and not words & LESION_WORDS and not words & SIDE_WORDS
