"""Trainers for nnU-Net 2.8.1 with a budget counted in iterations; found by it through ``nnUNet_extTrainer``.

In: nnU-Net's plans and preprocessed cases. Out: nnU-Net's usual result folder, and ``iterations.jsonl`` in it, one line per
training iteration with its seconds. This file runs in the peer's interpreter and never imports medseg3d.
"""

from __future__ import annotations

import json
import os
import time
from os.path import join

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TimedTrainer(nnUNetTrainer):
    """nnU-Net's trainer, unchanged but for a line with the seconds of each iteration (data waiting included)."""

    last_end: float | None = None

    def on_train_epoch_start(self):
        """The clock starts anew, so that validation and checkpoints between epochs are not counted."""
        super().on_train_epoch_start()
        self.last_end = time.perf_counter()

    def train_step(self, batch):
        """One iteration and its line in ``iterations.jsonl``."""
        start = time.perf_counter()
        result = super().train_step(batch)
        end = time.perf_counter()
        line = {
            "epoch": self.current_epoch,
            "waiting_s": round(start - self.last_end, 4),
            "step_s": round(end - start, 4),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        self.last_end = end
        with open(join(self.output_folder, "iterations.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return result


class Bench250Iterations(TimedTrainer):
    """250 iterations in all: nnU-Net lowers its learning rate per epoch, so 25 epochs of 10 give the poly schedule its decay."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008  the names and defaults are nnU-Net's
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 25
        self.num_iterations_per_epoch = 10
        self.num_val_iterations_per_epoch = 2  # the pseudo-Dice is not used; whole volumes are predicted at the end


class BenchFewIterations(TimedTrainer):
    """200 iterations, and no prediction of the validation cases: a model to compare predictions of, not to be proud of.

    Adam instead of nnU-Net's SGD: in so few iterations SGD predicts nothing but background on thick slices, and then equal label maps
    would say nothing.
    """

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008  the names and defaults are nnU-Net's
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 20
        self.num_iterations_per_epoch = 10
        self.num_val_iterations_per_epoch = 1
        self.initial_lr = 1e-3

    def configure_optimizers(self):
        """AdamW with nnU-Net's poly schedule."""
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def perform_actual_validation(self, save_probabilities=False):
        """Nothing: both programs predict afterwards."""


class Bench25Epochs(TimedTrainer):
    """25 epochs of nnU-Net's usual 250 iterations and 50 validation iterations."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008  the names and defaults are nnU-Net's
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 25


class BenchEqualSteps(TimedTrainer):
    """As many epochs and iterations as the environment says, so that both programs take the same steps."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008  the names and defaults are nnU-Net's
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["MEDSEG3D_BENCH_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["MEDSEG3D_BENCH_ITERATIONS"])
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)
