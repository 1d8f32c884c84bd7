"""What the weights might be: laws over θ with a mean, a variance and draws."""

from weightbank.distributions.distribution import StreamedDistribution, WeightDistribution
from weightbank.distributions.gaussian import Gaussian
from weightbank.distributions.keeping import Keep, Sketch, Window
from weightbank.distributions.mixture import Mixture, multi
from weightbank.distributions.moments import Moments
from weightbank.distributions.packed import PackedWeights, pack
from weightbank.distributions.patchwork import Patchwork
from weightbank.distributions.point import Point
from weightbank.distributions.rounded import Rounded
from weightbank.distributions.snapshots import Snapshots

__all__ = [
    "Gaussian",
    "Keep",
    "Mixture",
    "Moments",
    "PackedWeights",
    "Patchwork",
    "Point",
    "Rounded",
    "Sketch",
    "Snapshots",
    "StreamedDistribution",
    "WeightDistribution",
    "Window",
    "multi",
    "pack",
]
