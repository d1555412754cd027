"""Named epsilons, each with the reason for its value. References and kernels import the same names."""

# PonderV2 adds this to numerator and denominator of the NeuS alpha, so that an interval far inside or outside
# the surface (both sigmoids 0) gives alpha near 1 instead of 0/0.
NEUS_ALPHA_EPS = 1e-5

# PonderV2 adds this inside every factor of the transmittance product: an opaque sample (alpha = 1) then leaves
# 1e-7 instead of 0, and the product's gradient stays finite.
TRANSMITTANCE_EPS = 1e-7

# Divisor guard of the expected depth; a missed ray (all weights 0) then gets depth 0 instead of NaN.
DEPTH_EPS = 1e-10

# Floor under the norm of a direction: with it n / max(|n|, floor) has a bounded derivative at n = 0.
NORMAL_FLOOR = 1e-6

# NeuS inverse standard deviation exp(10 v) is kept in this range (PonderV2's clip): outside it the sigmoid is a
# step in float32 and its gradient is noise.
INV_S_MIN = 1e-6
INV_S_MAX = 1e6

# Laplace density: beta = |beta| + this floor, so that 1/beta stays below 1e4.
BETA_MIN = 1e-4

# Sharpness of the SDF decoder's softplus, and the argument above which it is the identity (torch.nn.Softplus).
SOFTPLUS_BETA = 100.0
SOFTPLUS_THRESHOLD = 20.0

# In the Triton kernels arguments of the softplus, times its sharpness, are clamped to this from below: the value there,
# exp(-40) / 100, is lost beside any other float32, and below it the exponential and its square become denormal.
SOFTPLUS_FLOOR = -40.0

# Inverse-CDF resampling: total weight of a ray is padded up to this, so that an empty ray is sampled uniformly.
PDF_EPS = 1e-5

# Inverse-CDF resampling: larger weights count as this, so that an infinite one takes every sample and the sum of a ray
# stays finite in float32.
WEIGHT_LIMIT = 1e30

# Ray-box intersection: a smaller direction component (float32's smallest normal number: what is below may be flushed to
# 0) is parallel to its slab.
DIRECTION_MIN = 2.0**-126

# Ray-box intersection: distances are cut off here, so that a box may be infinite.
DISTANCE_LIMIT = 1e30

# Added to the interval length when an SDF slope is estimated by finite differences.
SLOPE_EPS = 1e-5

# Reflected coordinates whose voxel index is at least this large have no fraction left in float32 (its spacing is 1
# there): they count as NaN, so that every backend gives the same number.
REFLECTION_MAX = 2.0**23
