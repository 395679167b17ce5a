"""One thing after the other: a study that is whole becomes jobs, a job is predicted, its results are sent, what is old is removed.

Every step ends with one file that is renamed into its place, and may be done again: results of the same slices by the same model have the
same UIDs, so that a step that was cut off between the deed and its record doubles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg3d.errors import InputError, MedsegError
from medseg3d.listening.choose import chosen, look_at
from medseg3d.listening.rules import Destination, ListenRules, Rule
from medseg3d.listening.spool import Job, Spool, job_id, last_change
from medseg3d.wording import counted

Predict = Callable[[Job, Rule, tuple[Path, ...], Path], tuple[Path, ...]]
"""Slices of a job → files of results in a folder; raises :class:`MedsegError`."""
Send = Callable[[Path, Destination], None]
"""Raises :class:`SendError` where a file did not arrive."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 3600.0
"""Seconds between two attempts: twice as long each time, up to an hour, as an archive under maintenance needs."""
REMEMBERED_DAYS = 90.0
"""So long it is known that a study was done, when somebody sends it again."""
DAY, HOUR = 86400.0, 3600.0


class SendError(MedsegError):
    """A result did not arrive; it will be tried again."""


@dataclass(slots=True)
class Night:
    """What a listener does between receiving and the end; ``say`` writes a line of the log."""

    spool: Spool
    rules: ListenRules
    predict: Predict
    send: Send
    say: Callable[[str], None]
    _seen: dict[Path, float] = field(default_factory=dict)
    _jobs: dict[str, Job] = field(init=False)

    def __post_init__(self) -> None:
        self._jobs = {job.id: job for job in self.spool.all_jobs()}

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that are known, as they are now."""
        return tuple(self._jobs.values())

    def is_done(self) -> bool:
        """Nothing waits: every study that lies here was looked at as it is now, and no job is left."""
        has_seen_all = all(self._seen.get(study) == last_change(study) for study in self.spool.studies())
        return has_seen_all and all(job.has_ended for job in self.jobs)

    def _keep(self, job: Job) -> Job:
        """On the disk first: what is known here may be lost."""
        self._jobs[job.id] = self.spool.write(job)
        return job

    def _fail(self, job: Job, reason: str, now: float) -> None:
        self._keep(replace(job, state="failed", reason=reason[:500], ended=now))
        self.say(f"{job.label}: given up: {reason}")

    def step(self, now: float) -> bool:
        """Do the next thing that is due; False where there is none."""
        return self._take_study(now) or self._work(now) or self._tidy(now)

    def _take_study(self, now: float) -> bool:
        """Jobs of a study that is whole."""
        for study in self.spool.studies():
            changed = last_change(study)
            if self._seen.get(study) == changed or now - changed < self.rules.receive.settle_seconds:
                continue
            is_new = self._make_jobs(study, now)
            self._seen[study] = changed
            if is_new:
                return True
        return False

    def _make_jobs(self, study: Path, now: float) -> bool:
        found, made = look_at(study), 0
        for rule in self.rules.rule:
            for paths in chosen(found, rule):
                names = tuple(sorted(str(path.relative_to(study)) for path in paths))
                name = job_id(study.name, rule.name, rule.digest, names)
                if name in self._jobs:
                    continue
                made += 1
                job = self._keep(Job(id=name, study=study.name, rule=rule.name, instances=names, since=now))
                self.say(f"{job.label}: {counted(len(names), 'slice')} to be predicted")
        if not made and study not in self._seen:
            told = f"{len(found.series)} series, {found.num_left_out} other objects, {found.num_damaged} damaged"
            self.say(f"study {study.name[:8]}: nothing new to predict ({told})")
        return made > 0

    def _work(self, now: float) -> bool:
        """Predict or send one job."""
        due = [job for job in self.jobs if not job.has_ended and job.next_try <= now]
        for job in sorted(due, key=lambda job: (job.state != "predicted", job.since)):  # what is ready goes out first
            rule = self.rules.rule_named(job.rule)
            if rule is None:
                self._fail(job, "the rule is no longer in the file", now)
            elif job.state == "waiting":
                self._predict(job, rule, now)
            else:
                self._send(job, rule, now)
            return True
        return False

    def _predict(self, job: Job, rule: Rule, now: float) -> None:
        study = self.spool.received / job.study
        paths = tuple(study / name for name in job.instances)
        try:
            if missing := [path for path in paths if not path.exists()]:
                raise InputError(f"{counted(len(missing), 'slice')} of it is not in the spool any more")
            files = self.predict(job, rule, paths, self.spool.results(job))
        except MedsegError as error:
            self._again(job, str(error), now, is_last=job.attempts + 1 >= self.rules.attempts)
            return
        names = tuple(path.name for path in files)
        self._keep(replace(job, state="predicted", files=names, attempts=0, next_try=0.0, reason=""))
        self.say(f"{job.label}: predicted ({', '.join(rule.outputs)})")

    def _send(self, job: Job, rule: Rule, now: float) -> None:
        """Send what has not arrived yet; each file that arrived is recorded before the next one."""
        for name in rule.send_to:
            destination = self.rules.destination_named(name)
            if destination is None:
                continue
            for file in job.files:
                if file in job.sent.get(name, ()):
                    continue
                try:
                    self.send(self.spool.results(job) / file, destination)
                except MedsegError as error:
                    is_last = now - job.since > HOUR * self.rules.give_up_hours
                    self._again(job, f"to {name}: {error}", now, is_last=is_last)
                    return
                job = self._keep(replace(job, sent={**job.sent, name: (*job.sent.get(name, ()), file)}))
        self._keep(replace(job, state="sent", ended=now, reason=""))
        places = f"sent to {', '.join(rule.send_to)}" if rule.send_to else "kept in the spool"
        self.say(f"{job.label}: {places}")

    def _again(self, job: Job, reason: str, now: float, *, is_last: bool) -> None:
        if is_last:
            self._fail(job, reason, now)
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**job.attempts)
        self._keep(replace(job, attempts=job.attempts + 1, next_try=now + pause, reason=reason[:500]))
        self.say(f"{job.label}: attempt {job.attempts + 1} failed, the next one in {pause:.0f} s: {reason}")

    def _tidy(self, now: float) -> bool:
        """Remove what is old: of a study where all jobs ended, and records of jobs after months.

        Results that are sent nowhere stay: the spool is where they are looked for.
        """
        keep = HOUR * self.rules.receive.keep_hours
        jobs = self.jobs
        for study in self.spool.studies():
            own = [job for job in jobs if job.study == study.name]
            last = max((job.ended for job in own), default=last_change(study))
            if study in self._seen and all(job.has_ended for job in own) and now - max(last, last_change(study)) > keep:
                self.spool.remove_study(study)
                self._seen.pop(study, None)
                for job in own:
                    if job.sent or job.state == "failed":
                        self.spool.remove_results(job)
                return True
        for job in jobs:
            if job.has_ended and now - job.ended > DAY * REMEMBERED_DAYS and not (self.spool.received / job.study).exists():
                self.spool.forget(job)
                del self._jobs[job.id]
                return True
        return False
