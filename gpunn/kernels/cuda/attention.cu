// Attention: splitting and merging of heads, and the softmax of their scores with its gradient.
//
// Compile with -DREAL=float or double. `lanes` threads (blockDim.x, a power of two) work on one row
// of scores together, and a block takes blockDim.y rows. The order of every sum is fixed, so results
// are reproducible. Shared memory holds blockDim.x * blockDim.y numbers.

typedef REAL T;

extern __shared__ unsigned char shared_bytes[];

__device__ T add(T a, T b) { return a + b; }
__device__ T larger(T a, T b) { return a < b || b != b ? b : a; }  // NaN wins

// Combine the values of the lanes of a row; every lane gets the result.
template <typename Combine>
__device__ T over_row(T value, Combine combine) {
  T* values = (T*)shared_bytes + threadIdx.y * blockDim.x;
  __syncthreads();
  values[threadIdx.x] = value;
  for (unsigned width = blockDim.x / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width)
      values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + width]);
  }
  __syncthreads();
  return values[0];
}

// Call work(i, j) for the entries i of an array (n, t, parts, heads, d), where j is the position of
// the same entry in (parts, n, heads, t, d). The grid's x and the block's y count the n t rows.
template <typename Work>
__device__ void over_heads(
    long long n, long long t, long long heads, long long d, long long parts, Work work) {
  unsigned width = parts * heads * d;
  for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < n * t;
       row += (long long)gridDim.x * blockDim.y) {
    long long sample = row / t, position = row % t;
    for (unsigned column = blockIdx.y * blockDim.x + threadIdx.x; column < width;
         column += gridDim.y * blockDim.x) {
      unsigned k = column % (unsigned)d, head = column / (unsigned)d;  // of all parts
      long long part = head / (unsigned)heads, own = head % (unsigned)heads;
      work(row * width + column, (((part * n + sample) * heads + own) * t + position) * d + k);
    }
  }
}

extern "C" __global__ void split_heads(
    const T* from, T* to, long long n, long long t, long long heads, long long d,
    long long parts) {
  over_heads(n, t, heads, d, parts, [=](long long i, long long j) { to[j] = from[i]; });
}

extern "C" __global__ void merge_heads(
    const T* from, T* to, long long n, long long t, long long heads, long long d,
    long long parts) {
  over_heads(n, t, heads, d, parts, [=](long long i, long long j) { to[i] = from[j]; });
}

// Overwrite each row of scores (n, heads, t, t) with the softmax of `scale` times the row over the
// allowed keys: those up to its own position if `causal`, and where the mask, if any, is true. The
// mask is (n, t), or (n, t, t) if `by_query`. The other entries become 0.
extern "C" __global__ void softmax_of_scores(
    T* scores, const bool* mask, long long by_query, long long causal, double scale, long long n,
    long long heads, long long t) {
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  bool inside = row < n * heads * t;  // threads outside still join in the sums
  long long query = row % t, sample = row / (heads * t);
  long long end = !inside ? 0 : causal ? query + 1 : t;
  T* z = scores + (inside ? row : 0) * t;
  const bool* seen = mask && inside ? mask + (by_query ? sample * t + query : sample) * t : nullptr;

  const T least = log(T(0));  // minus infinity
  T top = least;
  for (long long j = threadIdx.x; j < end; j += blockDim.x)
    if (!seen || seen[j]) top = larger(top, z[j]);
  top = over_row(top, larger);
  if (top == least) top = T(0);  // scores may overflow

  T total = T(0);
  for (long long j = threadIdx.x; j < end; j += blockDim.x)
    if (!seen || seen[j]) total += exp(T(scale) * (z[j] - top));
  total = over_row(total, add);
  if (total == T(0)) total = T(1);

  if (!inside) return;
  for (long long j = threadIdx.x; j < t; j += blockDim.x)
    z[j] = j < end && (!seen || seen[j]) ? exp(T(scale) * (z[j] - top)) / total : T(0);
}

// Overwrite dJ/dP with `scale` times dJ/dS: for each row P (dJ/dP - sum of P dJ/dP).
extern "C" __global__ void slope_of_scores(
    const T* weights, T* grads, double scale, long long rows, long long t) {
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  bool inside = row < rows;
  const T* p = weights + (inside ? row : 0) * t;
  T* g = grads + (inside ? row : 0) * t;
  T total = T(0);
  for (long long j = inside ? threadIdx.x : t; j < t; j += blockDim.x) total += p[j] * g[j];
  total = over_row(total, add);
  for (long long j = inside ? threadIdx.x : t; j < t; j += blockDim.x)
    g[j] = T(scale) * (p[j] * (g[j] - total));
}
