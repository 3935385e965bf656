"""Named recipes: settings of one objective, never code of their own."""

from __future__ import annotations

from dataclasses import dataclass

from interkd.kernels.errors import ConfigError
from interkd.kernels.selection import FrameSelection
from interkd.pipeline.config import in_range, one_of

NORMALISATIONS = ("utterance", "frame", "token")
DIVERGENCES = ("kl", "l2", "guided", "mass3-ntdk")
TAILS = ("bucket", "uniform", "renormalise")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Weights of the kinds of term, and the divergence.

    Attributes:
        final_ctc: Weight of the final head's CTC loss.
        inter_ctc: Weight of each intermediate head's CTC loss, or with `inter_ctc_shared` of all
            of them together.
        final_distill: Weight (lambda) of the final head's divergence from the teacher.
        inter_distill: Weight (lambda) of each intermediate head's divergence.
        divergence: `l2`, `kl`, `guided` or `mass3-ntdk` (docs/maths.md).
        consistency: Weight (alpha) of the agreement of two augmented views, on every head that
            has a CTC or a distillation term.
        self_conditioned: Trains a student whose intermediate posteriors are fed back.
        source: Where it was published.
    """

    final_ctc: float = 1.0
    inter_ctc: float = 0.0
    inter_ctc_shared: bool = False
    final_distill: float = 0.0
    inter_distill: float = 0.0
    divergence: str = "l2"
    consistency: float = 0.0
    self_conditioned: bool = False
    source: str


RECIPES = {
    "ctc": Recipe(source="Graves et al. 2006"),
    "inter-ctc": Recipe(
        final_ctc=0.7, inter_ctc=0.3, inter_ctc_shared=True, source="Lee & Watanabe 2021"
    ),
    "skd": Recipe(final_distill=0.25, source="Yoon et al. 2020 (TutorNet)"),
    "kl": Recipe(final_distill=0.25, divergence="kl", source="Hinton et al. 2015"),
    "inter-ctc-skd": Recipe(
        inter_ctc=1.0,
        final_distill=0.25,
        source="Inter-KD's control: the final head's teacher alone",
    ),
    "inter-ctc-kl": Recipe(
        inter_ctc=1.0,
        final_distill=0.25,
        divergence="kl",
        source="the same with the Kullback-Leibler divergence",
    ),
    "inter-kd": Recipe(
        inter_ctc=1.0, final_distill=0.25, inter_distill=0.25, source="Yoon et al. 2022 (Inter-KD)"
    ),
    "inter-kd-kl": Recipe(
        inter_ctc=1.0,
        final_distill=0.25,
        inter_distill=0.25,
        divergence="kl",
        source="Inter-KD with the Kullback-Leibler divergence",
    ),
    "kd-only": Recipe(
        final_ctc=0.0,
        final_distill=1.0,
        inter_distill=1.0,
        divergence="kl",
        source="arXiv 2506.01503: not from transcripts",
    ),
    "guided": Recipe(
        final_distill=1.0, divergence="guided", source="Kurata & Audhkhasi 2019 (Guided CTC)"
    ),
    "self-conditioned": Recipe(
        final_ctc=0.5,
        inter_ctc=0.5,
        inter_ctc_shared=True,
        self_conditioned=True,
        source="Nozaki & Komatsu 2021",
    ),
    "mass3-ntdk": Recipe(
        final_distill=1.0,
        divergence="mass3-ntdk",
        source="KL of {blank, right token, rest} and of the rest, on the token's frames",
    ),
    "inter-mass3-ntdk": Recipe(
        inter_ctc=1.0,
        final_distill=1.0,
        inter_distill=1.0,
        divergence="mass3-ntdk",
        source="Inter-KD with Mass3 and NTDK",
    ),
    "cr-ctc": Recipe(consistency=0.2, source="Yao et al. 2025 (CR-CTC)"),
    "inter-kd-cr": Recipe(
        inter_ctc=1.0,
        final_distill=0.25,
        inter_distill=0.25,
        consistency=0.2,
        source="Inter-KD with CR-CTC's two views",
    ),
    "inter-kd-kl-cr": Recipe(
        inter_ctc=1.0,
        final_distill=0.25,
        inter_distill=0.25,
        divergence="kl",
        consistency=0.2,
        source="Inter-KD with the Kullback-Leibler divergence and CR-CTC's two views",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """A recipe and what departs from it; None takes the recipe's value.

    Attributes:
        recipe: A name of `RECIPES`.
        final_ctc_weight: See `Recipe.final_ctc`.
        inter_ctc_weight: Weight of EACH intermediate head's CTC loss.
        distill_weight: Lambda of every head that the recipe distils.
        divergence: See `Recipe.divergence`.
        tail: What stands for the teacher's mass that the cache does not hold, on both sides:
            `bucket`, `uniform` or `renormalise` (docs/maths.md).
        frames: Frames on which the student follows the teacher: `all`, `non-blank`,
            `symmetric(N)`.
        temperature: Softens both sides of the divergence; `kl` and `l2` only, as `tail` and
            `frames`.
        blank_penalty: `mass3-ntdk` only: nats taken from the teacher's blank before its
            forward-backward, so that a token's frames are more than its spike.
        rest_weight: `mass3-ntdk` only: weight of the tokens that are neither blank nor right.
        consistency_weight: See `Recipe.consistency`.
        normalisation: `utterance` (sum over frames, mean over utterances), `frame` (all sums by
            the batch's frames) or `token` (all sums by the batch's target tokens). It moves the
            error rate more than most methods do, so it is printed with every result.
    """

    recipe: str = "inter-kd"
    final_ctc_weight: float | None = None
    inter_ctc_weight: float | None = None
    distill_weight: float | None = None
    divergence: str | None = None
    tail: str = "bucket"
    frames: str = "all"
    temperature: float = 1.0
    blank_penalty: float = 2.0
    rest_weight: float = 1.0
    consistency_weight: float | None = None
    normalisation: str = "utterance"

    def __post_init__(self) -> None:
        one_of("objective.recipe", self.recipe, RECIPES)
        one_of("objective.tail", self.tail, TAILS)
        one_of("objective.normalisation", self.normalisation, NORMALISATIONS)
        if self.divergence is not None:
            one_of("objective.divergence", self.divergence, DIVERGENCES)
        weights = ("final_ctc_weight", "inter_ctc_weight", "distill_weight", "consistency_weight")
        in_range("objective.", self, *weights, "rest_weight", at_least=0)
        in_range("objective.", self, "blank_penalty")
        in_range("objective.", self, "temperature", above=0)
        FrameSelection.parse(self.frames)
        if self.kind not in ("kl", "l2") and (
            (self.tail, self.frames, self.temperature) != ("bucket", "all", 1.0)
        ):
            raise ConfigError(
                f"divergence '{self.kind}' has rules of its own",
                expected="tail bucket, frames all, temperature 1",
                got=(self.tail, self.frames, self.temperature),
            )

    @property
    def kind(self) -> str:
        """The divergence in force."""
        return self.divergence or RECIPES[self.recipe].divergence

    @property
    def consistency(self) -> float:
        """The consistency weight in force."""
        given = self.consistency_weight
        return RECIPES[self.recipe].consistency if given is None else given

    @property
    def views(self) -> int:
        """Times that each utterance is recognised in a step."""
        return 2 if self.consistency else 1


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """What an objective asks of one head."""

    ctc: float
    distill: float


def head_weights(config: ObjectiveConfig, intermediate_heads: int) -> tuple[HeadWeights, ...]:
    """The weights of every head, the final head last."""
    recipe = RECIPES[config.recipe]
    inter_ctc = recipe.inter_ctc
    if recipe.inter_ctc_shared and intermediate_heads:
        inter_ctc = recipe.inter_ctc / intermediate_heads
    if config.inter_ctc_weight is not None:
        inter_ctc = config.inter_ctc_weight
    final_ctc = recipe.final_ctc if config.final_ctc_weight is None else config.final_ctc_weight

    def distill(weight: float) -> float:
        return config.distill_weight if config.distill_weight is not None and weight else weight

    inter = HeadWeights(ctc=inter_ctc, distill=distill(recipe.inter_distill))
    final = HeadWeights(ctc=final_ctc, distill=distill(recipe.final_distill))
    return (inter,) * intermediate_heads + (final,)


def uses_intermediate_heads(config: ObjectiveConfig) -> bool:
    """Whether any intermediate head would learn anything."""
    inter = head_weights(config, 1)[0]
    return inter.ctc > 0 or inter.distill > 0


def uses_transcripts(config: ObjectiveConfig) -> bool:
    """Whether the objective learns from the transcripts, aligns the teacher to them, or counts."""
    weights = head_weights(config, 1)
    if config.normalisation == "token":
        return True
    aligns = (config.divergence or RECIPES[config.recipe].divergence) == "mass3-ntdk"
    return any(w.ctc > 0 or (w.distill > 0 and aligns) for w in weights)


def uses_teacher(config: ObjectiveConfig) -> bool:
    """Whether the objective reads a teacher cache."""
    return any(weights.distill > 0 for weights in head_weights(config, 1))
