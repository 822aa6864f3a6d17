// Batches and masks.

typedef UNIT U;

// Copy rows of up to MOST arrays at `indices`, in one launch; rows are counted in units of UNIT.
struct Rows {
  const U* from[MOST];
  U* to[MOST];
  long long width[MOST];  // units a row
  long long count;
};

extern "C" __global__ void gather(Rows rows, const long long* indices, long long n) {
  long long step = (long long)gridDim.x * blockDim.x;
  for (long long a = 0; a < rows.count; ++a) {
    long long width = rows.width[a];
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n * width; i += step)
      rows.to[a][i] = rows.from[a][indices[i / width] * width + i % width];
  }
}
