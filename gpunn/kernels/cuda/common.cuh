// Shared by the sources: the Python code inserts it in place of #include "common.cuh".

// AMD's compiler and devices before compute capability 7.0 lack this keyword; it changes no result.
#if defined(__HIP__) || __CUDA_ARCH__ < 700
#define __grid_constant__
#endif

// N consecutive numbers, loaded and stored by a single instruction.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  enum { n = N };  // a static member would be a variable in the device's memory
  T of[N];
  static __device__ Pack load(const T* from) { return *(const Pack*)from; }
  __device__ void store(T* to) const { *(Pack*)to = *this; }
};

#define PACK_BYTES 16  // the widest load

// Whether full packs can start where these arrays do; an array may be null.
template <typename... Arrays>
__device__ bool aligned(const Arrays*... arrays) {
  return (... && ((size_t)arrays % PACK_BYTES == 0));
}

// Loop over this thread's part of the entries begin..end, as number `thread` of `threads`: call
// work(pack, i) for the pack of entries from i on. If the arrays are `aligned`, `begin` is a
// multiple of a full pack. The remaining entries, or all if not aligned, are processed one at a
// time; that loop is not unrolled, because the compiler would divide to find the number of rounds.
template <typename T, typename Work>
__device__ void over(
    long long begin, long long end, long long thread, long long threads, bool aligned, Work work) {
  const int n = PACK_BYTES / sizeof(T);
  long long rest = aligned ? end - (end - begin) % n : begin;
  for (long long i = begin + n * thread; i < rest; i += n * threads) work(Pack<T, n>(), i);
#pragma unroll 1
  for (long long i = rest + thread; i < end; i += threads) work(Pack<T, 1>(), i);
}

// The same for entries 0..size and all threads of a one-dimensional grid.
template <typename T, typename Work>
__device__ void over_all(long long size, bool aligned, Work work) {
  long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  over<T>(0, size, thread, (long long)gridDim.x * blockDim.x, aligned, work);
}

typedef unsigned short Half;  // a bfloat16: the upper half of a float32

// The bits of a float32 rounded to bfloat16: to the nearest, ties to even. In integers, so that
// subnormal numbers are rounded like any others.
__device__ Half upper_half(unsigned bits) {
  bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  if (is_nan) return (bits >> 16) | 0x40;  // rounded up, it could become infinity or zero
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}
