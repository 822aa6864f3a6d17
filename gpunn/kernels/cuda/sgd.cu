// The whole step of stochastic gradient descent, for up to MOST arrays, in one launch.
//
// Compile with -DREAL=float or double and -DMOST=.... The arrays come by value, in the kernel's
// parameters: gradients are new arrays at every step, and a table on the device would have to be
// sent there each time. Block b works on the array whose range of blocks holds b, on a piece of
// PIECE numbers.

typedef REAL T;

#define PIECE 4096

struct Arrays {  // its layout is known to the Python side, too
  T* value[MOST];
  const T* grad[MOST];
  T* velocity[MOST];
  long long size[MOST];
  double decay[MOST];
  long long first_block[MOST + 1];
  long long count;
};

__device__ T clipped(T g, T limit) {
  if (limit == T(0)) return g;  // no limit
  return g < -limit ? -limit : g > limit ? limit : g;
}

__device__ int array_of(const Arrays& arrays, int block) {
  int i = 0;
  while (i + 1 < arrays.count && block >= arrays.first_block[i + 1]) ++i;
  return i;
}

// partial[first + b] = the sum of squares of block b's piece of the (clipped) gradients.
extern "C" __global__ void squared_norm(Arrays arrays, T* partial, long long first, double clip_value) {
  __shared__ T sums[256];
  int i = array_of(arrays, blockIdx.x);
  long long begin = (long long)(blockIdx.x - arrays.first_block[i]) * PIECE;
  long long end = begin + PIECE < arrays.size[i] ? begin + PIECE : arrays.size[i];
  T sum = T(0);
  for (long long j = begin + threadIdx.x; j < end; j += blockDim.x) {
    T g = clipped(arrays.grad[i][j], T(clip_value));
    sum += g * g;
  }
  sums[threadIdx.x] = sum;
  for (int width = blockDim.x / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
  }
  if (threadIdx.x == 0) partial[first + blockIdx.x] = sums[0];
}

// g is clipped, scaled by clip_norm / max(norm, clip_norm), and decayed; then the update.
extern "C" __global__ void sgd(
    Arrays arrays, const T* partial, long long partials, double learning_rate, double momentum,
    long long nesterov, double clip_value, double clip_norm) {
  __shared__ T sums[256];
  T shrink = T(1);
  if (partials) {
    T sum = T(0);
    for (long long j = threadIdx.x; j < partials; j += blockDim.x) sum += partial[j];
    sums[threadIdx.x] = sum;
    for (int width = blockDim.x / 2; width > 0; width /= 2) {
      __syncthreads();
      if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    }
    __syncthreads();
    T norm = sqrt(sums[0]);
    T limit = T(clip_norm);
    shrink = limit / (norm < limit ? limit : norm);
  }
  int i = array_of(arrays, blockIdx.x);
  long long begin = (long long)(blockIdx.x - arrays.first_block[i]) * PIECE;
  long long end = begin + PIECE < arrays.size[i] ? begin + PIECE : arrays.size[i];
  T* value = arrays.value[i];
  T* velocity = arrays.velocity[i];
  for (long long j = begin + threadIdx.x; j < end; j += blockDim.x) {
    T g = clipped(arrays.grad[i][j], T(clip_value)) * shrink + T(arrays.decay[i]) * value[j];
    T step = T(-learning_rate) * g;
    if (velocity) {
      T v = T(momentum) * velocity[j] + step;
      velocity[j] = v;
      step = nesterov ? T(momentum) * v + step : v;
    }
    value[j] += step;
  }
}
