// The two factors of a product, float32, rounded to bfloat16: to the nearest, ties to even.
//
// A bfloat16 is the upper half of a float32, so all is done in integers, and numbers below the least
// normal one are rounded as any others.

#include "common.cuh"

typedef unsigned short Half;

__device__ Half upper_half(unsigned bits) {
  bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  if (is_nan) return (bits >> 16) | 0x40;  // rounded up, it could become infinity or zero
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

// Rows of blocks: one for x, one for y.
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
