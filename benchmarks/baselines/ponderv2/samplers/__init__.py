"""Where along a ray the field is evaluated."""

from benchmarks.baselines.ponderv2.samplers.error_bounded import ErrorBoundedSampler
from benchmarks.baselines.ponderv2.samplers.neus import NeuSSampler
from benchmarks.baselines.ponderv2.samplers.pdf import PDFSampler
from benchmarks.baselines.ponderv2.samplers.queries import FieldQueries, SampledRays
from benchmarks.baselines.ponderv2.samplers.spaced import SPACINGS, SpacedSampler, spaced_sampler
from benchmarks.baselines.ponderv2.samplers.unisurf import UniSurfSampler

__all__ = [
    "SPACINGS",
    "ErrorBoundedSampler",
    "FieldQueries",
    "NeuSSampler",
    "PDFSampler",
    "SampledRays",
    "SpacedSampler",
    "UniSurfSampler",
    "spaced_sampler",
]
