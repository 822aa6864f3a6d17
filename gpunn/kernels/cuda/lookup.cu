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

#define AT_ONCE 4  // loads that are under way together; a block has a multiple of so many threads

// Add one column of the rows of `grad` to those of `out`, in order: row k to found[k], which is below
// 0 where it goes nowhere. A sum stays in a register as long as its row is the same.
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
    for (long long j = threadIdx.x; j < width; j += blockDim.x)
      add_in_order(found, grad + start * width + j, out + j, width);
  }
}
