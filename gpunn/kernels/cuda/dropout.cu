// Dropout, which computes its mask as it runs: entry i is SplitMix64 at (key, i).
//
// Compile with -DREAL=float or double. In a captured step, the key is at `present`.

#include "common.cuh"

typedef REAL T;

__device__ unsigned long long splitmix64(unsigned long long key, long long i) {
  unsigned long long z = key + (unsigned long long)(i + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

extern "C" __global__ void dropout(
    const T* x, T* y, T* mask, long long size, unsigned long long key,
    const unsigned long long* present, unsigned long long threshold, double kept) {
  if (present) key = *present;
  over_all<T>(size, aligned(x, y, mask), [=](auto pack, long long i) {
    auto some = pack.load(x + i), factor = pack;
    for (int k = 0; k < pack.n; ++k) {
      factor.of[k] = (splitmix64(key, i + k) >> 32) >= threshold ? T(kept) : T(0);
      some.of[k] *= factor.of[k];
    }
    factor.store(mask + i);
    some.store(y + i);
  });
}
