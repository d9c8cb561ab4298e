"""Reconstruction and codebook metrics of a tokenizer over a validation set."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runkit.ranks import sum_over_ranks


class TokenizerMetrics:
    """Metrics that accumulate over batches of reconstructions, originals and codes.

    PSNR, in dB, is the mean over images in 0 … 255 (depth: in [0, 1]). mIoU is the mean over the labels that occur in
    the originals or reconstructions. Usage, entropy (bits) and perplexity are those of all codes.
    """

    def __init__(self, modality: str, codebook_size: int, n_labels: int = 0) -> None:
        self.modality = modality
        self.counts_K = np.zeros(codebook_size, dtype=np.int64)
        self._sums = np.zeros(3)  # images, loss, PSNR
        self._confusion = np.zeros((n_labels, n_labels), dtype=np.int64)

    def add(
        self,
        output: npt.NDArray[Any],
        target: npt.NDArray[Any],
        codes_BHW: npt.NDArray[Any],
        *,
        loss: float = 0.0,
    ) -> None:
        """Add a batch of images, as `to_pictures` returns them, with its mean loss."""
        self.counts_K += np.bincount(codes_BHW.ravel(), minlength=len(self.counts_K))
        self._sums += len(output), loss * len(output), 0.0
        if self.modality == "segmentation":
            labels = len(self._confusion)
            pairs = target.ravel().astype(np.int64) * labels + output.ravel()
            self._confusion += np.bincount(pairs, minlength=labels**2).reshape(labels, labels)
            return
        peak = 1.0 if self.modality == "depth" else 255.0
        mse_B = np.square(output.astype(np.float64) - target).reshape(len(output), -1).mean(1)
        self._sums[2] += (10 * np.log10(peak**2 / np.maximum(mse_B, 1e-10))).sum()

    def reduce(self, device: torch.device) -> None:
        """Sum the metrics over all ranks."""
        for name in ("counts_K", "_sums", "_confusion"):
            array = getattr(self, name)
            setattr(self, name, sum_over_ranks(torch.from_numpy(array).to(device)).cpu().numpy())

    def result(self) -> dict[str, float]:
        """Return the metrics, with the keys of metrics.jsonl."""
        images, loss, psnr_db = self._sums
        p = self.counts_K[self.counts_K > 0] / max(1, self.counts_K.sum())
        entropy_bits = float(-(p * np.log2(p)).sum())
        figures = {
            "val_loss": float(loss / images),
            "val_usage": float((self.counts_K > 0).mean()),
            "val_perplexity": 2.0**entropy_bits,
            "val_entropy_bits": entropy_bits,
        }
        if self.modality != "segmentation":
            return {"val_psnr_db": float(psnr_db / images), **figures}
        hit = np.diag(self._confusion)
        union = self._confusion.sum(0) + self._confusion.sum(1) - hit
        accuracy = float(hit.sum() / max(1, self._confusion.sum()))
        return {
            "val_pixel_accuracy": accuracy,
            "val_miou": float((hit[union > 0] / union[union > 0]).mean()),
            **figures,
        }
