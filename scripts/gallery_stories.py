"""The five stories of the gallery: which data, what is typed, what is special about it, and whether its images may be shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """``dataset`` is a folder of ``MEDSEG3D_DATA``. ``source`` says where the data is from and under which terms.

    ``may_show`` is whether pictures of the images may stand in a repository that anyone may use for anything, given the attribution in
    ``source``; otherwise the phantom of the demo takes their place.
    """

    name: str
    dataset: str
    title: str
    intro: str
    special: str
    source: str
    may_show: bool
    options: tuple[str, ...] = ()


STORIES = (
    Story(
        name="hippocampus",
        dataset="Hippocampus",
        title="Hippocampus: two labels in cropped brain MRI",
        intro="200 small volumes of about 35×50×36 voxels at 1 mm, each with the anterior and the posterior part of one hippocampus. "
        "A first dataset that trains in minutes, also without a GPU.",
        special="Grey values have no common scale: the maximum of a case lies between 113 and 1.7 million, so every image is scaled by "
        "its own mean and standard deviation. Cases 2k-1 and 2k are very probably the two hippocampi of one person. Their names "
        "do not tell, but their order does, as such a pair has nearly the same grey values: the plan keeps each pair in one "
        "fold, so that no network is measured on the other half of a brain that it was trained on.",
        source="Task 4 of the Medical Segmentation Decathlon (Antonelli et al. 2022, Simpson et al. 2019), CC BY-SA 4.0. The picture "
        "shows one of its cases with contours and is under the same license.",
        may_show=True,
    ),
    Story(
        name="cardiac",
        dataset="ACDC",
        title="Cardiac MRI: two time points of each patient, and the ejection fraction",
        intro="48 short-axis stacks of 24 patients, each at the end of diastole (`_ED`) and of systole (`_ES`), with both ventricles' "
        "cavities and the myocardium. Slices are 10 mm thick and pixels 1.5 mm wide.",
        special="A patient has two cases, and the names say so: the plan keeps both in one fold. Voxels are nearly seven times as thick "
        "as they are wide, so the network does not pool over slices before the others have become as coarse. What a "
        "cardiologist wants is not the Dice but the ejection fraction, (EDV - ESV) / EDV, from the two volumes of the left "
        "cavity; the table below has it from the predicted label maps and from the reference.",
        source="ACDC (Bernard et al. 2018), as converted by others; the terms of these images are not stated where they were found, so "
        "no picture of them is shown. Spacing is nominal: distances in mm are not real millimeters.",
        may_show=False,
    ),
    Story(
        name="head-and-neck",
        dataset="OpenKBP",
        title="Head-and-neck CT: seven organs at risk, left and right",
        intro="36 planning CTs of about 112×62×125 voxels, 4 mm wide and 2.5 to 3 mm apart, with brainstem, spinal cord, both "
        "parotids, esophagus, larynx and mandible.",
        special="A CT's numbers have a physical meaning, so all cases are clipped and scaled by the same numbers. The right and the "
        "left parotid are a pair by their names: training never mirrors an image from left to right without exchanging them. "
        "Organs are 100 to 1000 voxels here, so one layer of voxels changes the Dice by much: look at the surface Dice (NSD) "
        "beside it.",
        source="OpenKBP (Babier et al. 2021), whose repository is under the MIT license, resampled by its publishers. The picture "
        "shows one of its cases with contours.",
        may_show=True,
    ),
    Story(
        name="mouse",
        dataset="Mouse",
        title="Mouse brain: 37 structures at 0.15 mm",
        intro="10 in vivo MRIs of mice, 112×128×80 voxels of 0.15 mm, with an automatic parcellation into 37 structures.",
        special="Label values run from 1 to 40 with gaps, which nnU-Net refuses; here predictions hold the same values as the files. "
        "Voxels are seven times as small as in human MRI, and no number of the plan assumes a size in millimeters. 17 "
        "structures have a left and a right label, and `doctor` notices that by the headers what is called left lies on the "
        "right side of all animals: either the names or the headers are swapped. The labels are another program's output, so a "
        "Dice here is agreement with that program.",
        source="rTg4510 mouse brains (Ma et al. 2014, 2019), from a repository under GPL-3.0. Its terms would bind whoever passes on a "
        "picture, so none is shown.",
        may_show=False,
    ),
    Story(
        name="electron-microscopy",
        dataset="FlyEM",
        title="Electron microscopy: membranes of a fly's nervous system",
        intro="Two blocks of 512×512×20 voxels, 4.6 nm wide and 47.5 nm thick, with membrane, glia, mitochondria and synapses.",
        special="Not a medical image and not a millimeter in sight: the header says 0.0046 mm where micrometers are meant. The plan "
        "goes by the ratio of spacings alone, ten to one, and starts with kernels that lie in the slice. Two cases make two "
        "folds; each network is trained on one block and measured on its neighbor, which is little evidence, and the report "
        "says from how many cases each number is. Synapses are 0.4 % of the voxels.",
        source="Drosophila ventral nerve cord (Gerhard et al. 2013), CC BY-NC-SA 3.0. These terms exclude commercial use, so no "
        "picture of it is part of this repository.",
        may_show=False,
    ),
)
