// Rows of a table by index, and the gradient of the table.
//
// Compile with -DREAL=float or double.

typedef REAL T;

// Copy the row of the table (rows, width) for each of n indices; NaN if an index is out of range.
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

#define AT_ONCE 4  // concurrent loads; a block's number of threads is a multiple of it

// Add one column of the rows of `grad` to rows of `out`, in order: row k to row found[k], unless
// that is negative. A sum stays in a register while its row stays the same.
__device__ void add_in_order(const int* found, const T* grad, T* out, long long width) {
  int row = -1;
  T sum = T(0);
  for (unsigned k = 0; k < blockDim.x; k += AT_ONCE) {
    T given[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u)
      given[u] = found[k + u] >= 0 ? grad[(k + u) * width] : T(0);
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      int next = found[k + u];
      if (next < 0) continue;
      if (next != row) {
        if (row >= 0) out[row * width] = sum;
        row = next;
        sum = out[row * width];
      }
      sum += given[u];
    }
  }
  if (row >= 0) out[row * width] = sum;
}

// Write the sum of the rows of `grad` for each index. Each block reads all indices, and adds to its
// own rows of the table in their order: results are reproducible, and threads do not collide.
extern "C" __global__ void embedding_backward(
    const long long* indices, const T* grad, T* sums, long long n, long long rows, long long width,
    long long rows_of_block) {
  __shared__ int found[256];  // one per thread of a block
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
    for (long long j = threadIdx.x; j < width; j += blockDim.x)
      add_in_order(found, grad + start * width + j, out + j, width);
  }
}
