"""One network for several datasets: plan, preprocess, train them together, add one more, and the whole chain."""

from medseg3d.workflows.universal.planning import domains_of, plan_universal, preprocess_universal
from medseg3d.workflows.universal.run import run_universal
from medseg3d.workflows.universal.training import add_domain, train_universal

__all__ = ["add_domain", "domains_of", "plan_universal", "preprocess_universal", "run_universal", "train_universal"]
