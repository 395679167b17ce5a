"""One thing after the other: a study that is whole becomes jobs, a job is predicted, its results are sent, what is old is removed.

Every step ends with one file that is renamed into its place, and may be done again: results of the same slices by the same model have the
same UIDs, so that a step that was cut off between the deed and its record doubles nothing. Whatever goes wrong with one study, one job or
one destination stays there: the night goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg3d.errors import InputError, MedsegError, StorageError
from medseg3d.listening.choose import chosen, look_at
from medseg3d.listening.rules import Destination, ListenRules, Rule
from medseg3d.listening.spool import Job, Spool, job_id, last_change
from medseg3d.wording import counted

logger = logging.getLogger(__name__)
Predict = Callable[[Job, Rule, tuple[Path, ...], Path], tuple[Path, ...]]
"""Slices of a job → files of results in a folder; raises :class:`MedsegError`, or ``MemoryError``."""
Send = Callable[[Path, Destination], None]
"""Raises :class:`SendError` where a file did not arrive."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 3600.0
"""Seconds between two attempts: twice as long each time, up to an hour, as an archive under maintenance needs."""
TIDY_SECONDS = 60.0
"""Between two looks for what is old."""
REMEMBERED_DAYS = 90.0
"""So long it is known that a study was done, when somebody sends it again."""
DAY, HOUR = 86400.0, 3600.0


class SendError(MedsegError):
    """A result did not arrive; it will be tried again."""


@dataclass(frozen=True, slots=True)
class _Pause:
    """A destination that failed: when it is tried again, how often it failed one after the other, and why."""

    until: float
    times: int
    reason: str


@dataclass(slots=True)
class Night:
    """What a listener does between receiving and the end; ``say`` writes a line of the log."""

    spool: Spool
    rules: ListenRules
    predict: Predict
    send: Send
    say: Callable[[str], None]
    _seen: dict[Path, float] = field(default_factory=dict)
    _num_damaged: dict[Path, int] = field(default_factory=dict)
    _pauses: dict[str, _Pause] = field(default_factory=dict)
    _next_tidy: float = 0.0
    _jobs: dict[str, Job] = field(init=False)

    def __post_init__(self) -> None:
        jobs, damaged = self.spool.all_jobs()
        self._jobs = {job.id: job for job in jobs}
        for name in damaged:
            self.say(f"the record {name} is damaged and was put aside; its study is looked at again")

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that are known, as they are now."""
        return tuple(self._jobs.values())

    def is_done(self) -> bool:
        """Nothing waits: every study that lies here was looked at as it is now, and no job is left."""
        has_seen_all = all(self._seen.get(study) == last_change(study) for study in self.spool.studies())
        return has_seen_all and all(job.has_ended for job in self.jobs)

    def step(self, now: float) -> bool:
        """Do the next thing that is due; False where there is none."""
        return self._take_study(now) or self._work(now) or self._tidy(now)

    def _keep(self, job: Job) -> Job:
        """On the disk first: what is known here may be lost."""
        self._jobs[job.id] = self.spool.write(job)
        return job

    # ---- studies

    def _take_study(self, now: float) -> bool:
        """Jobs of a study that is whole."""
        for study in self.spool.studies():
            changed = last_change(study)
            if self._seen.get(study) == changed or now - changed < self.rules.receive.settle_seconds:
                continue
            try:
                is_new = self._make_jobs(study, now)
            except StorageError:
                raise
            except Exception as error:  # whatever one study holds, the next one is to be predicted
                logger.debug("A study cannot be looked at", exc_info=error)
                self.say(f"study {study.name[:8]}: cannot be looked at ({type(error).__name__}); it is left where it is")
                is_new = False
            self._seen[study] = changed
            if is_new:
                return True
        return False

    def _make_jobs(self, study: Path, now: float) -> bool:
        """A job for each series and rule; one that failed is tried again, as the study came again or the listener was started anew."""
        found, made, known = look_at(study), 0, 0
        if found.num_damaged not in (0, self._num_damaged.get(study)):
            self._num_damaged[study] = found.num_damaged
            self.say(f"study {study.name[:8]}: {counted(found.num_damaged, 'damaged file')}; the series they lie in are not predicted")
        for rule in self.rules.rule:
            taken, reason = chosen(found, rule)
            if reason:
                self.say(f"study {study.name[:8]}, rule {rule.name}: not predicted: {reason}")
            for picked in taken:
                names = tuple(str(path.relative_to(study)) for path in picked.paths)
                names = names if picked.counts else tuple(sorted(names))
                name = job_id(study.name, rule.name, rule.digest, names)
                earlier = self._jobs.get(name)
                if earlier is not None and earlier.state != "failed":
                    known += not self._comes_again(earlier)
                    continue
                made += 1
                self._replace_parts(study.name, rule.name, set(names), now)
                since = "again" if earlier is not None else "to be predicted"
                job = self._keep(Job(id=name, study=study.name, rule=rule.name, instances=names, since=now, counts=picked.counts))
                self.say(f"{job.label}: {counted(picked.num_slices, 'slice')} {since}")
        if not made and study not in self._seen:
            told = f"{len(found.series)} series, {found.num_left_out} other objects, {found.num_damaged} damaged, {known} known"
            self.say(f"study {study.name[:8]}: nothing new to predict ({told})")
        return made > 0

    def _comes_again(self, job: Job) -> bool:
        """Whether a job is predicted once more, as instances of it came again with other content, such as a corrected name, before any of
        its results was sent. What was sent stays, and it is said."""
        content = self.spool.content_of(job)
        if job.state not in ("predicted", "sent") or not job.content or content in ("", job.content):
            return False
        if any(job.sent.values()) or job.state == "sent":
            self._keep(replace(job, content=content))
            self.say(
                f"{job.label}: came again with other content after its results were sent; they stay as they were sent. To have it "
                f"predicted "
                f"anew, stop the listener, remove jobs/{job.id}.json from the spool and the results from where they went, and start it "
                f"again"
            )
            return False
        self._keep(replace(job, state="waiting", files=(), content="", reason="came again with other content"))
        self.say(f"{job.label}: came again with other content; it is predicted again")
        return True

    def _is_moving(self, job: Job, now: float) -> bool:
        """Whether instances of its study still come: half of them may be new, and half old."""
        study = self.spool.received / job.study
        return study.is_dir() and now - last_change(study) < self.rules.receive.settle_seconds

    def _replace_parts(self, study: str, rule: str, names: set[str], now: float) -> None:
        """A job of some of these slices that is not sent yet is not needed any more."""
        for job in self.jobs:
            if job.study == study and job.rule == rule and not job.has_ended and set(job.instances) < names:
                self._keep(replace(job, state="replaced", reason="more slices came", ended=now))

    # ---- jobs

    def _work(self, now: float) -> bool:
        """Send or predict one job; what is ready goes out first."""
        due = [job for job in self.jobs if not job.has_ended and job.next_try <= now]
        waiting = sorted((job for job in due if not self._is_moving(job, now)), key=lambda job: job.since)
        for job in sorted(waiting, key=lambda job: job.state != "predicted"):
            rule = self.rules.rule_named(job.rule)
            if rule is None:
                self._fail(job, "the rule is no longer in the file", now)
            elif job.state == "waiting":
                self._predict(job, rule, now)
            elif not self._send(job, rule, now):
                continue
            return True
        return False

    def _predict(self, job: Job, rule: Rule, now: float) -> None:
        study = self.spool.received / job.study
        paths = tuple(study / name for name in job.instances)
        try:
            if missing := [path for path in paths if not path.exists()]:
                raise InputError(f"{counted(len(missing), 'slice')} of it is not in the spool any more")
            content = self.spool.content_of(job)
            files = self.predict(job, rule, paths, self.spool.results(job))
        except (StorageError, MemoryError) as error:  # the machine's fault, not the study's: it waits until there is room
            self._again(job, f"{type(error).__name__}: {error}", now, is_last=self._is_too_late(job, now))
            return
        except MedsegError as error:
            self._again(job, str(error), now, is_last=job.attempts + 1 >= self.rules.attempts)
            return
        except Exception as error:  # whatever one series meets, the next one is to be predicted
            logger.debug("%s: a defect", job.label, exc_info=error)
            self._again(job, f"a defect ({type(error).__name__})", now, is_last=job.attempts + 1 >= self.rules.attempts)
            return
        if self.spool.content_of(job) != content:
            self.say(f"{job.label}: came again with other content while it was predicted; it is predicted again")
            return
        names = tuple(path.name for path in files)
        self._keep(replace(job, state="predicted", files=names, attempts=0, next_try=0.0, reason="", content=content))
        self.say(f"{job.label}: predicted ({', '.join(rule.outputs)})")

    def _send(self, job: Job, rule: Rule, now: float) -> bool:
        """Send what has not arrived yet, each destination for itself; each file that arrived is recorded before the next one.

        False where all that is missing waits for destinations that failed a moment ago.
        """
        missing = [name for name in job.files if not (self.spool.results(job) / name).exists()]
        if missing:
            self._keep(replace(job, state="waiting", files=(), reason=f"{missing[0]} is gone"))
            self.say(f"{job.label}: {missing[0]} is gone from the spool; it is predicted again")
            return True
        has_tried = False
        for name in rule.send_to:
            destination = self.rules.destination_named(name)
            is_paused = name in self._pauses and self._pauses[name].until > now
            if destination is None or is_paused or set(job.files) <= set(job.sent.get(name, ())):
                continue
            has_tried = True
            job = self._send_to(job, destination, now)
        open_places = [
            name for name in rule.send_to if self.rules.destination_named(name) and not set(job.files) <= set(job.sent.get(name, ()))
        ]
        if not open_places:
            self._keep(replace(job, state="sent", ended=now, reason=""))
            self.say(f"{job.label}: {'sent to ' + ', '.join(rule.send_to) if rule.send_to else 'kept in the spool'}")
        elif self._is_too_late(job, now):
            self._fail(job, "; ".join(self._pauses[name].reason for name in open_places if name in self._pauses), now)
        else:
            return has_tried
        return True

    def _send_to(self, job: Job, destination: Destination, now: float) -> Job:
        name = destination.name
        for file in job.files:
            if file in job.sent.get(name, ()):
                continue
            try:
                self.send(self.spool.results(job) / file, destination)
            except Exception as error:  # whatever one destination does, the others get their results
                times = self._pauses[name].times + 1 if name in self._pauses else 1
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (times - 1))
                told = f"to {name}: {error if isinstance(error, MedsegError) else type(error).__name__}"[:500]
                self._pauses[name] = _Pause(now + pause, times, told)
                self.say(f"{job.label}: {told} It is tried again in {pause:.0f} s")
                return self._keep(replace(job, reason=told))
            job = self._keep(replace(job, sent={**job.sent, name: (*job.sent.get(name, ()), file)}))
            self._pauses.pop(name, None)
        return job

    def _is_too_late(self, job: Job, now: float) -> bool:
        return now - job.since > HOUR * self.rules.give_up_hours

    def _again(self, job: Job, reason: str, now: float, *, is_last: bool) -> None:
        if is_last:
            self._fail(job, reason, now)
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(job.attempts, 20))
        self._keep(replace(job, attempts=job.attempts + 1, next_try=now + pause, reason=reason[:500]))
        self.say(f"{job.label}: attempt {job.attempts + 1} failed, the next one in {pause:.0f} s: {reason}")

    def _fail(self, job: Job, reason: str, now: float) -> None:
        self._keep(replace(job, state="failed", reason=reason[:500], ended=now))
        self.say(f"{job.label}: given up: {reason}")

    # ---- what is old

    def _tidy(self, now: float) -> bool:
        """Remove what is old: of a study where all jobs ended, and records of jobs after months.

        Results that are sent nowhere stay: the spool is where they are looked for.
        """
        if now < self._next_tidy:
            return False
        by_study: dict[str, list[Job]] = {}
        for job in self.jobs:
            by_study.setdefault(job.study, []).append(job)
        for study in self.spool.studies():
            if self._is_old(study, by_study.get(study.name, []), now):
                self.spool.remove_study(study)
                self._seen.pop(study, None)
                for job in by_study.get(study.name, []):
                    if job.sent or job.state != "sent":
                        self.spool.remove_results(job)
                return True
        for job in self.jobs:
            if job.has_ended and now - job.ended > DAY * REMEMBERED_DAYS and not (self.spool.received / job.study).exists():
                self.spool.forget(job)
                del self._jobs[job.id]
                return True
        self._next_tidy = now + TIDY_SECONDS
        return False

    def _is_old(self, study: Path, own: list[Job], now: float) -> bool:
        """It was looked at as it is, all is done, and nothing came for ``keep_hours``; what is sent once more counts as come."""
        changed = last_change(study)
        last = max([changed, *(job.ended for job in own)])
        keep = max(HOUR * self.rules.receive.keep_hours, self.rules.receive.settle_seconds)
        return self._seen.get(study) == changed and all(job.has_ended for job in own) and now - last > keep
