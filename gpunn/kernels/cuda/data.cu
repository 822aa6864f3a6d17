// Batches: rows of up to MOST arrays, copied in units of UNIT.

#include "common.cuh"

typedef UNIT U;

struct Rows {  // the Python code uses the same layout
  const U* from[MOST];
  U* to[MOST];
  long long width[MOST];  // units per row
  long long count;
};

// Copy the rows of all arrays at `indices`, from `*first` on if `first` is not null. The grid's x
// and the block's y count rows, the grid's y and the block's x units in a row, so no thread divides
// to find its position.
extern "C" __global__ void gather(
    const __grid_constant__ Rows rows, const long long* indices, long long n,
    const long long* first) {
  if (first) indices += *first;
  long long lane = (long long)blockIdx.y * blockDim.x + threadIdx.x;
  long long lanes = (long long)gridDim.y * blockDim.x, step = (long long)gridDim.x * blockDim.y;
  for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < n; row += step) {
    long long chosen = indices[row];
    for (int a = 0; a < rows.count; ++a) {
      long long width = rows.width[a];
      const U* from = rows.from[a] + chosen * width;
      U* to = rows.to[a] + row * width;
      for (long long i = lane; i < width; i += lanes) to[i] = from[i];
    }
  }
}
