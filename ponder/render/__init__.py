"""Fields, samplers, renderer and losses: the only part of the pipeline that calls ponder_kernels."""
