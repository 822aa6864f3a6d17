// One or two factors of a product, float32, rounded to bfloat16.

#include "common.cuh"

// The grid has one row of blocks for x, and one for y if there is a second array.
extern "C" __global__ void round_factors(
    const unsigned* x, Half* x_rounded, long long x_size,
    const unsigned* y, Half* y_rounded, long long y_size) {
  const unsigned* from = blockIdx.y ? y : x;
  Half* to = blockIdx.y ? y_rounded : x_rounded;
  over_all<unsigned>(blockIdx.y ? y_size : x_size, aligned(from, to), [=](auto pack, long long i) {
    auto some = pack.load(from + i);
    Pack<Half, pack.n> rounded;
    for (int k = 0; k < pack.n; ++k) rounded.of[k] = upper_half(some.of[k]);
    rounded.store(to + i);
  });
}
