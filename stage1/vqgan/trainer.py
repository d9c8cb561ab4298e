"""One stage-1 run: model, discriminator, losses, optimisers, and the step that updates them.

Axes: B batch, C channels, H W pixels, h w grid cells, D code dimension.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runkit.checkpoints import CONFIG, SCALARS, TENSORS, WEIGHTS, DamagedError, check_shapes, read_tensors, read_values
from runkit.devices import make_autocast, resumed_precision
from runkit.muon import Muon
from runkit.runs import RunFolder, warn_of_other_steps
from runkit.training import place_run, update_average
from vqgan import checkpoint, distributed, finetune
from vqgan.config import TrainConfig
from vqgan.cpu_kernels import resolve_precision, training_layout
from vqgan.discriminators import make_discriminator
from vqgan.errors import InputError
from vqgan.losses import adaptive_weight, discriminator_loss, perceptual_loss
from vqgan.modalities import reconstruction_loss
from vqgan.model import VQGAN
from vqgan.quantize import Quantizer, VectorQuantizer


class NonFiniteLossError(InputError):
    """A loss term is not finite; the step has updated nothing."""


class Trainer:
    """Model, discriminator, losses and optimisers of one run: all that a step changes."""

    def __init__(self, config: TrainConfig) -> None:
        if config.model.quantizer in ("gumbel", "palette"):
            raise InputError(f"quantizer is {config.model.quantizer!r}, which cannot be trained: choose another one")
        torch.manual_seed(config.seed)
        self.config = config
        self.device, self.precision = place_run(config, resolve_precision, InputError)
        self.layout = training_layout(self.device)
        layout = {"device": self.device, "memory_format": self.layout}
        self.model: VQGAN = VQGAN(config.model, config.loss).to(**layout)  # type: ignore[call-overload]
        self.quantizer: Quantizer = self.model.quantize
        self.averaged: VQGAN | None = copy.deepcopy(self.model).requires_grad_(False) if config.ema_decay else None
        self.perceptual = perceptual_loss(config.loss)
        if self.perceptual is not None:
            self.perceptual.to(**layout)  # type: ignore[call-overload]
        if config.freeze == "encoder":
            finetune.freeze(self.model)
        self.disc = make_discriminator(config).to(**layout)  # type: ignore[call-overload]
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        adam: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas}
        self.optimizer = self._make_optimizer(adam)
        self.disc_optimizer = torch.optim.Adam(self.disc.parameters(), **adam, fused=True)
        self.step_done = 0
        if config.compile:
            # The last layer is not compiled, because the adaptive weight differentiates it separately.
            self.model.encoder.compile()
            self.model.decoder.body = torch.compile(self.model.decoder.body)

    @property
    def shipped(self) -> VQGAN:
        """The model that is evaluated and saved: the moving average, if there is one."""
        return self.averaged if self.averaged is not None else self.model

    def _make_optimizer(self, adam: dict[str, Any]) -> torch.optim.Optimizer:
        if self.config.optimizer == "adam":
            return torch.optim.Adam(self.trained, **adam, fused=True)
        ends = (self.model.encoder.conv_in, self.model.decoder.conv_out)
        convolutions = [m for m in self.model.modules() if isinstance(m, nn.Conv2d) and m not in ends]
        kernels = [m.weight for m in convolutions if m.weight.requires_grad]
        ids = {id(kernel) for kernel in kernels}
        others = [p for p in self.trained if id(p) not in ids]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": kernels, "orthogonal": True}]
        return Muon(groups, precision=self.precision, weight_decay=0.0, **adam)

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        config, step = self.config, self.step_done
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        cosine = 0.55 + 0.45 * math.cos(math.pi * min(1.0, step / config.steps)) if config.decay else 1.0
        return config.learning_rate * warm * cosine

    def is_adversarial(self) -> bool:
        """Return whether the next step trains the discriminator."""
        return self.config.loss.disc_weight > 0 and self.step_done >= self.config.loss.disc_start

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """Return the context of mixed precision."""
        return make_autocast(self.device, self.precision if enabled else "float32")

    def step(self, x_BCHW: Tensor) -> dict[str, float]:
        """Update the autoencoder and, from `disc_start` on, the discriminator, from one forward pass.

        Args:
            x_BCHW: This rank's part of the batch.

        Returns:
            The loss terms, averaged over the ranks.

        Raises:
            NonFiniteLossError: A term is not finite; no weight was changed.
        """
        config = self.config
        self.model.train()
        sums: dict[str, Tensor] = {}
        for part in x_BCHW.chunk(config.accumulate):
            terms, z_BDhw = self._backward(part.to(self.device, memory_format=self.layout, non_blocking=True))
            sums = {name: sums.get(name, 0) + value.detach() / config.accumulate for name, value in terms.items()}
        stacked = torch.stack(list(sums.values()))
        distributed.average([stacked])
        figures = dict(zip(sums, stacked.tolist(), strict=True))
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            raise NonFiniteLossError(
                f"loss is not finite at step {self.step_done} ({', '.join(bad)}): lower the learning rate"
            )
        self.quantizer.update_ema()
        self._update(self.optimizer, self.trained)
        if self.is_adversarial():
            self._update(self.disc_optimizer, list(self.disc.parameters()))
        self.step_done += 1
        if self.averaged is not None:
            update_average(self.averaged, self.model, config.ema_decay, self.step_done)
        # The last quarter has no restarts, so that the decoder adapts to the final codebook.
        if config.restart_every and self.step_done % config.restart_every == 0 and self.step_done < 0.75 * config.steps:
            assert isinstance(self.quantizer, VectorQuantizer)  # the config has made sure
            self.quantizer.restart_unused(z_BDhw.detach())
        return figures

    def _update(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
        distributed.average(p.grad for p in parameters if p.grad is not None)
        if self.config.clip_grad:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _backward(self, x_BCHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the gradients of one part of a batch; return the loss terms and the latent.

        Each loss is differentiated once at the reconstruction, and their weighted sum is propagated through the
        autoencoder. The adaptive weight then requires no second pass through the perceptual network.
        """
        config = self.config.loss
        with self.autocast():
            reconstruction, quantization, z_BDhw = self.model(x_BCHW)
        output = reconstruction.detach().float().requires_grad_()
        terms = {
            "reconstruction": reconstruction_loss(output, x_BCHW, self.config.model, config.l2_weight),
            "quantization": quantization,
        }
        loss = terms["reconstruction"]
        if self.perceptual is not None:
            # Depthwise convolutions are twice as slow in bfloat16 on CPUs, so EfficientNet is in float32 there.
            with self.autocast(self.device.type == "cuda" or config.perceptual != "efficientnet-lite0"):
                terms["perceptual"] = self.perceptual(output, x_BCHW)
            loss = loss + config.perceptual_weight * terms["perceptual"]
        (gradient,) = torch.autograd.grad(loss, output)
        if self.is_adversarial():
            gradient = gradient + self._adversarial(x_BCHW, reconstruction, output, gradient, terms)
        terms = {"loss": loss + config.codebook_weight * quantization, **terms}
        share = 1 / self.config.accumulate
        outputs, gradients = [reconstruction], [share * gradient.to(reconstruction.dtype)]
        if quantization.requires_grad:  # not if encoder and codes are frozen
            outputs.append(quantization)
            gradients.append(torch.full_like(quantization, share * config.codebook_weight))
        torch.autograd.backward(outputs, gradients)
        return terms, z_BDhw

    def _adversarial(
        self, x_BCHW: Tensor, reconstruction: Tensor, output: Tensor, gradient: Tensor, terms: dict[str, Tensor]
    ) -> Tensor:
        """Add the discriminator's gradients to its parameters; return the weighted adversarial gradient at the output.

        Both are computed from one pass of the discriminator over the detached reconstruction.
        """
        config = self.config.loss
        with self.autocast():
            # Masks are planes of zeros and ones, so they are compared with probabilities.
            shown = output.softmax(1) if self.config.model.modality == "segmentation" else output
            real, fake = self.disc(x_BCHW).float(), self.disc(shown).float()
        terms["adversarial"] = -fake.mean()
        terms["discriminator"] = discriminator_loss(config.disc_loss, real, fake)
        (adversarial_gradient,) = torch.autograd.grad(terms["adversarial"], output, retain_graph=True)
        share = terms["discriminator"] / self.config.accumulate
        torch.autograd.backward(share, inputs=list(self.disc.parameters()))
        last = self.model.decoder.conv_out.weight
        pair = [
            torch.autograd.grad(reconstruction, last, part.to(reconstruction.dtype), retain_graph=True)[0].float()
            for part in (gradient, adversarial_gradient)
        ]
        distributed.average(pair)
        weight = adaptive_weight(*pair)
        ramp = min(1.0, (self.step_done - config.disc_start + 1) / config.disc_ramp)
        terms["adaptive_weight"] = weight
        return ramp * config.disc_weight * weight * adversarial_gradient

    def _state(self) -> dict[str, Tensor]:
        """Return what determines later steps, besides the weights and the optimisers."""
        tensors = {
            **{f"disc.{key}": value for key, value in self.disc.state_dict().items()},
            **{f"quantizer.{name}": value for name, value in self.quantizer.named_buffers()},
            "rng": torch.get_rng_state(),
        }
        if self.averaged is not None:
            tensors |= {f"averaged.{key}": value for key, value in self.averaged.state_dict().items()}
        return tensors

    def state(self) -> dict[str, Any]:
        """Return the config, weights, tensors and scalars of a checkpoint after the last finished step."""
        return {
            "config": checkpoint.saved_config(self.config),
            "weights": self.model.state_dict(),
            "tensors": {
                **self._state(),
                **checkpoint.optimizer_tensors("optimizer", self.optimizer),
                **checkpoint.optimizer_tensors("disc_optimizer", self.disc_optimizer),
            },
            "scalars": {"precision": self.precision},
        }

    def check(self, folder: Path, run: RunFolder) -> None:
        """Make sure that :meth:`restore` can continue from a checkpoint of a run; one rank is enough.

        Raises:
            DamagedError: The checkpoint is damaged.
            InputError: It belongs to another config, or to more steps.
        """
        config, values = read_values(folder)
        run.check_same_run(checkpoint.parse_config(config, folder / CONFIG), self.config, run.path)
        if values.get("precision", "float32") not in ("float32", "bfloat16"):
            raise DamagedError(f"{folder / SCALARS} is damaged: precision is {values['precision']!r}")
        weights, tensors = read_tensors(folder)
        check_shapes(weights, self.model.state_dict(), folder / WEIGHTS)
        check_shapes(tensors, self._state(), folder / TENSORS)
        run.check_steps(values["step"], self.config.steps)

    def start(self) -> None:
        """Take the weights of the tokenizer from which the run starts, if there is one.

        Raises:
            InputError: As :func:`vqgan.finetune.load_initial`.
        """
        if self.config.init:
            finetune.load_initial(self.model, self.config)
            if self.averaged is not None:
                self.averaged.load_state_dict(self.model.state_dict())

    def restore(self, folder: Path) -> None:
        """Continue exactly from a checkpoint that :meth:`check` has accepted."""
        config, values = read_values(folder)
        weights, tensors = read_tensors(folder, verify=False)
        self.model.load_state_dict(weights)

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.disc.load_state_dict(part("disc."))
        if self.averaged is not None:
            self.averaged.load_state_dict(part("averaged."))
        checkpoint.restore_optimizer("optimizer", self.optimizer, tensors)
        checkpoint.restore_optimizer("disc_optimizer", self.disc_optimizer, tensors)
        torch.set_rng_state(tensors["rng"])
        for name, buffer in self.quantizer.named_buffers():
            buffer.copy_(tensors[f"quantizer.{name}"])
        self.step_done = values["step"]
        self.precision = resumed_precision(self.config.precision, self.precision, values.get("precision"))
        warn_of_other_steps(config["steps"], self.config.steps, self.step_done, self._depends_on_steps())

    def _depends_on_steps(self) -> Iterator[str]:
        if self.config.decay:
            yield "the learning rate (decay)"
        if self.config.restart_every:
            yield "the restarts of unused codes (restart_every)"
