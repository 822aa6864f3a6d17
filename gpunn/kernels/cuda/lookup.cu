// Rows of a table by their index, and the gradient of the table.
//
// Compile with -DREAL=float or double.

typedef REAL T;

// Copy the row of the table (rows, width) for each of n indices; NaN for one that is out of range.
extern "C" __global__ void embedding(
    const long long* indices, const T* table, T* to, long long n, long long rows,
    long long width) {
  for (long long i = (long long)blockIdx.x * blockDim.y + threadIdx.y; i < n;
       i += (long long)gridDim.x * blockDim.y) {
    long long row = indices[i];
    bool valid = row >= 0 && row < rows;
    for (long long j = (long long)blockIdx.y * blockDim.x + threadIdx.x; j < width;
         j += (long long)gridDim.y * blockDim.x)
      to[i * width + j] = valid ? table[row * width + j] : T(nan(""));
  }
}

// Write the sums of the rows of `grad` by index. A block has some rows of the table to itself, and
// adds to them in the order of the indices, all of which it reads: the result is the same each time,
// and no two threads write to one place.
extern "C" __global__ void embedding_backward(
    const long long* indices, const T* grad, T* sums, long long n, long long rows, long long width,
    long long rows_of_block) {
  __shared__ int found[256];  // as many as a block has threads
  long long first = blockIdx.x * rows_of_block;
  long long own = rows - first < rows_of_block ? rows - first : rows_of_block;
  T* out = sums + first * width;
  for (long long j = threadIdx.x; j < own * width; j += blockDim.x) out[j] = T(0);
  for (long long start = 0; start < n; start += blockDim.x) {
    long long i = start + threadIdx.x;
    long long row = i < n ? indices[i] - first : -1;
    __syncthreads();
    found[threadIdx.x] = row >= 0 && row < own ? (int)row : -1;
    __syncthreads();
    for (unsigned k = 0; k < blockDim.x; ++k)
      if (found[k] >= 0)
        for (long long j = threadIdx.x; j < width; j += blockDim.x)
          out[found[k] * width + j] += grad[(start + k) * width + j];
  }
}
