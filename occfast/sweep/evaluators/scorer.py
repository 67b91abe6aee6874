"""Scores of a model on occluded copies of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...native import ops
from ...native.reference import cosine, first_largest
from ..memory import is_out_of_memory
from ..options import dtype_of, fill_for
from ..source import Block
from ..types import ScoreFunction
from .runner import Runner, checked_outputs

_CLEAN_BATCH = 16  # images in a forward pass without an occluder


@dataclass(frozen=True)
class _Target:
    """What outputs are scored with.

    Attributes:
        labels: [n, ...]: classes, or whatever a score function takes.
        references: Embeddings, float64 [n, K].
        baseline: Value without an occluder, float64 [n].
        function: Value of outputs and labels; None: a native score.
    """

    labels: Tensor | None = None
    references: Tensor | None = None
    baseline: Tensor | None = None
    function: ScoreFunction | None = None


def _probability(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Return the softmax probability of the labels, float64 [n]."""
    assert labels is not None
    return outputs.double().softmax(1).gather(1, labels[:, None])[:, 0]


_FUNCTIONS: dict[str, ScoreFunction] = {"probability_drop": _probability}
OF_EMBEDDINGS = ("similarity_drop", "mismatch")  # scores of recognizers
OF_LABELS = ("score_drop", "probability_drop")  # scores with a target class, of which there may be several


def _of_shape(function: ScoreFunction, shape: list[int]) -> ScoreFunction:
    """Return a score function of flattened outputs, which a function of outputs [n, *shape] computes."""
    return lambda outputs, labels: function(outputs.reshape(len(outputs), *shape), labels)


def _called(function: ScoreFunction, outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Return a score function's values, float64 [n].

    Raises:
        TypeError, ValueError: They are something else.
    """
    found = function(outputs, labels)
    if not isinstance(found, Tensor) or not (found.is_floating_point() or found.dtype == torch.bool):
        got = str(found.dtype).removeprefix("torch.") if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"score: expected a function that returns floating-point numbers [n], got {got}")
    if found.shape != (len(outputs),):
        raise ValueError(
            f"score: expected a function that returns one number for each output, [{len(outputs)}], got "
            f"{list(found.shape)}"
        )
    return found.double()


class Scorer(Runner):
    """Scores occluded copies of a block of images.

    :meth:`take` selects the images of a block, :meth:`start` prepares some of them and :meth:`score` evaluates
    positions. Flat position ``n * P + p`` is position p of the grid's P on image n of those taken.

    The arguments are those of :class:`Runner`.

    Attributes:
        kept: int64 [n], numbers of the images taken within their block.
        parts: float64 [T, n, P], the scores of the images taken for each of T targets; 0 where nothing was scored.
        scores: float64 [n, P], those of the first target.
        method, batch_size, layout: Choices; "" and 0 before the first :meth:`start`.
    """

    images: Tensor
    kept: Tensor
    parts: Tensor
    scores: Tensor
    #: With a binary score: score a number that is above 0 where the score is 1: the largest other output minus the
    #: label's, or the threshold minus the similarity.
    margins: bool = False

    # -- the images of a block -------------------------------------------------------------------------

    def take(self, block: Block) -> int:
        """Select the images of a block to sweep and return their number."""
        self.images, labels, clean = self._screen(block)
        self._first = block.first
        n = self.images.shape[0]
        self.expected_images = n
        targets = labels.shape[1] if labels is not None and self._several(labels) else 1
        self.parts = torch.zeros(targets, n, self.grid.positions, dtype=torch.float64, device=self.images.device)
        self.scores = self.parts[0]
        self._bad = torch.zeros(1, dtype=torch.int32, device=self.images.device)
        if n:
            self._targets = self._targets_of(labels, clean)
            self._fill = fill_for(self.options.fill, self.images, self.options.seed, block.indices[self.kept])
        return n

    def _screen(self, block: Block) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the images to sweep, their labels and their outputs without an occluder."""
        images, labels = block.images, block.labels
        at_once = min(self.options.batch_size or _CLEAN_BATCH, _CLEAN_BATCH)
        outputs = torch.cat([self._clean(part) for part in images.split(at_once)])
        if not bool(outputs.isfinite().all()):
            wrong = int((~outputs.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"model: expected finite outputs, got NaN or infinity for image {block.first + wrong}")
        classes, score = outputs.shape[1], self.options.score
        self.kept = torch.arange(images.shape[0])
        if classes == 1 and score in ("error", "probability_drop", *OF_EMBEDDINGS):
            raise ValueError(
                f"model: expected outputs [n, K] with K of at least 2 for score={score!r}, got [n, 1]; a "
                "single logit x with threshold t has the class scores torch.cat([t - x, x - t], 1)"
            )
        if score in OF_EMBEDDINGS:
            _check_references(labels, classes)
            if score == "similarity_drop" or labels is None or not self.options.skip_misclassified:
                return images, labels, outputs
            assert self.options.threshold is not None
            right = cosine(outputs.double(), labels.double()) >= self.options.threshold
            self.kept = right.nonzero()[:, 0].cpu()
            return images[right], labels[right], outputs[right]
        if callable(score) and not self.options.skip_misclassified:
            return images, labels, outputs
        if callable(score) and len(self._shape) != 1:
            raise ValueError(
                f"skip_misclassified: expected False for outputs of shape {['n', *self._shape]}, which are not of "
                "classes, got True"
            )
        if labels is None:
            raise ValueError(f"labels: expected int64 [N] for score={self.options.score_name!r}, got None")
        several = score in OF_LABELS and labels.dim() == 2 and labels.shape[1] > 0
        if labels.dtype != torch.int64 or not (labels.dim() == 1 or several):
            wanted = "int64 [N] or [N, targets]" if score in OF_LABELS else "int64 [N]"
            raise TypeError(f"labels: expected {wanted}, got {str(labels.dtype)[6:]} {list(labels.shape)}")
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"labels: expected classes in [0, {classes}), got values from {low} to {high}")
        if self.options.skip_misclassified:
            if several:
                raise ValueError("skip_misclassified: expected False with several targets for each image, got True")
            right = first_largest(outputs) == labels
            self.kept = right.nonzero()[:, 0].cpu()
            return images[right], labels[right], outputs[right]
        return images, labels, outputs

    def _clean(self, images: Tensor) -> Tensor:
        """Return the outputs of images without an occluder, [n, K]."""
        # Clones, since a model may change its input, and may return the same memory again.
        try:
            found = self.model(images.clone())
        except RuntimeError as error:
            wanted = dtype_of(self.model)
            if wanted is None or wanted == images.dtype or is_out_of_memory(error):
                raise
            names = (str(dtype).removeprefix("torch.") for dtype in (wanted, images.dtype))
            raise TypeError("images: expected {}, the dtype of the model's weights, got {}".format(*names)) from error
        outputs = checked_outputs(found, len(images), any_shape=callable(self.options.score)).clone()
        self._shape = list(found.shape[1:])
        return outputs

    def _several(self, labels: Tensor) -> bool:
        """Return whether labels are several targets of each image."""
        return self.options.score in OF_LABELS and labels.dim() == 2

    def _targets_of(self, labels: Tensor | None, clean: Tensor) -> list[_Target]:
        """Return what each target is scored with."""
        score = self.options.score
        if score == "error":
            return [_Target(labels=labels)]
        if score in OF_EMBEDDINGS:
            mine = clean.double()
            references = mine if labels is None else labels.double()
            return [_Target(references=references, baseline=cosine(mine, references))]
        function = _FUNCTIONS.get(score) if isinstance(score, str) else score
        found = []
        for each in labels.unbind(1) if labels is not None and self._several(labels) else [labels]:
            if function is None:
                assert each is not None
                baseline = clean.double().gather(1, each[:, None])[:, 0]
            else:
                if callable(score):
                    function = _of_shape(score, self._shape)
                baseline = _called(function, clean, each)
            found.append(_Target(labels=each, baseline=baseline, function=function))
        return found

    # -- some of them at a time ------------------------------------------------------------------------

    def images_at_once(self) -> int:
        """Return how many images to :meth:`start` at a time, so that memory holds their activations."""
        return self.fitting(self.images)

    def start(self, first: int, last: int) -> None:
        """Prepare images ``first`` to ``last - 1``."""
        fill = self._fill[first:last] if self._fill.shape[0] == self.images.shape[0] else self._fill
        self._start = first * self.grid.positions
        self.begin(self.images[first:last], fill)

    def score(self, positions: Tensor) -> None:
        """Score flat positions int64 [M] of the started images, into :attr:`scores`.

        Positions run in batches. The batch size is halved if memory runs out.
        """
        for started, outputs in self.run(positions.to(self.scores.device) - self._start):
            part = started + self._start
            if self.options.threshold is not None:
                self._score_mismatch(outputs, part, self.options.threshold)
                continue
            if self.margins:
                self._score_margins(outputs, part)
                continue
            for target, scores in zip(self._targets, self.parts, strict=True):
                if target.function is None:
                    self._score_natively(outputs, part, target, scores)
                else:
                    self._score_by_function(outputs, part, target, scores)
        if self.scores.device.type == "cpu":  # reading the flag of a GPU waits for the GPU
            self.check_finite()

    def _score_natively(self, outputs: Tensor, positions: Tensor, target: _Target, scores: Tensor) -> None:
        assert isinstance(self.options.score, str)
        kind = ops.SCORES[self.options.score]
        given = target.labels, target.references, target.baseline
        ops.sweep_score(outputs, positions, self.grid.positions, kind, scores, self._bad, *given)

    def _score_by_function(self, outputs: Tensor, positions: Tensor, target: _Target, scores: Tensor) -> None:
        assert target.function is not None and target.baseline is not None
        rows = positions // self.grid.positions
        values = _called(target.function, outputs, None if target.labels is None else target.labels[rows])
        scores.view(-1)[positions] = target.baseline[rows] - values
        self._bad |= ~(outputs.isfinite().all() & values.isfinite().all())

    def _score_margins(self, outputs: Tensor, positions: Tensor) -> None:
        labels = self._targets[0].labels
        assert labels is not None
        own = labels[positions // self.grid.positions][:, None]
        others = outputs.scatter(1, own, -torch.inf).amax(1).double()
        margin = others - outputs.gather(1, own)[:, 0].double()
        # In a tie the lowest class counts: 0 if that is the label, else the smallest number above 0.
        wrong = (margin == 0) & (first_largest(outputs) != own[:, 0])
        self.scores.view(-1)[positions] = torch.where(wrong, torch.finfo(torch.float64).tiny, margin)
        self._bad |= ~outputs.isfinite().all()

    def _score_mismatch(self, outputs: Tensor, positions: Tensor, threshold: float) -> None:
        references = self._targets[0].references
        assert references is not None
        margin = threshold - cosine(outputs.double(), references[positions // self.grid.positions])
        self.scores.view(-1)[positions] = margin if self.margins else (margin > 0).double()
        self._bad |= ~outputs.isfinite().all()

    def check_finite(self) -> None:
        """Raise ValueError if any output of this block so far was NaN or infinite."""
        if int(self._bad):
            raise ValueError(
                "model: expected finite outputs, got NaN or infinity for an occluded copy of one of the images "
                f"from number {self._first} on"
            )

    def alike(self, positions: Tensor) -> Tensor:
        """Return flat positions in an order that brings together those that the evaluator computes together."""
        return positions[self.order(positions - self._start)]


def _check_references(labels: Tensor | None, width: int) -> None:
    if labels is None:
        return
    if not labels.is_floating_point() or labels.dim() != 2 or labels.shape[1] != width:
        raise ValueError(
            f"labels: expected None or reference embeddings, floating-point [N, {width}], "
            f"got {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        )
    if not bool(labels.isfinite().all()):
        raise ValueError("labels: expected finite reference embeddings, got NaN or infinity")
