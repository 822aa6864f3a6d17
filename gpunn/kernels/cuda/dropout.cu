// Dropout, with its mask made on the spot: entry i is SplitMix64 at (key, i).
//
// Compile with -DREAL=float or double.

typedef REAL T;

extern "C" __global__ void dropout(
    const T* x, T* y, T* mask, long long size, unsigned long long key, unsigned long long threshold,
    double kept) {
  long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step) {
    unsigned long long z = key + (unsigned long long)(i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    T m = (z >> 32) >= threshold ? T(kept) : T(0);
    mask[i] = m;
    y[i] = x[i] * m;
  }
}
