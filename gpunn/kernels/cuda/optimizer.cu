// The whole step of an optimizer, for up to MOST arrays, in one launch.
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
  T* first[MOST];   // the velocity, or the first moment
  T* second[MOST];  // the second moment
  long long size[MOST];
  double decay[MOST];
  long long first_block[MOST + 1];
  long long count;
};

struct Piece {
  int array;
  long long begin, end;
};

__device__ Piece piece_of(const Arrays& arrays, int block) {
  int i = 0;
  while (i + 1 < arrays.count && block >= arrays.first_block[i + 1]) ++i;
  long long begin = (long long)(block - arrays.first_block[i]) * PIECE;
  long long end = begin + PIECE < arrays.size[i] ? begin + PIECE : arrays.size[i];
  Piece piece = {i, begin, end};
  return piece;
}

__device__ T clipped(T g, T limit) {
  return g < -limit ? -limit : g > limit ? limit : g;
}

// What an update takes for the gradient. Without decay the value is not looked at: 0 times NaN is NaN.
__device__ T regular(T g, T value, T limit, T shrink, T decay) {
  g = clipped(g, limit) * shrink;
  return decay == T(0) ? g : g + decay * value;
}

// The sum of what each thread of the block has; every thread gets it.
__device__ T sum_of_block(T* sums, T own) {
  sums[threadIdx.x] = own;
  for (int width = blockDim.x / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
  }
  __syncthreads();
  return sums[0];
}

// partial[first + b] = the sum of squares of block b's piece of the (clipped) gradients.
extern "C" __global__ void squared_norm(Arrays arrays, T* partial, long long first, double clip_value) {
  __shared__ T sums[256];
  Piece piece = piece_of(arrays, blockIdx.x);
  T sum = T(0);
  for (long long j = piece.begin + threadIdx.x; j < piece.end; j += blockDim.x) {
    T g = clipped(arrays.grad[piece.array][j], T(clip_value));
    sum += g * g;
  }
  sum = sum_of_block(sums, sum);
  if (threadIdx.x == 0) partial[first + blockIdx.x] = sum;
}

// clip_norm / max(norm, clip_norm), from the partial sums of squares; 1 if there are none.
__device__ T shrinkage(T* sums, const T* partial, long long partials, T clip_norm) {
  if (!partials) return T(1);
  T sum = T(0);
  for (long long j = threadIdx.x; j < partials; j += blockDim.x) sum += partial[j];
  T norm = sqrt(sum_of_block(sums, sum));
  return clip_norm / (norm < clip_norm ? clip_norm : norm);
}

// In both kernels g is clipped, scaled by the shrinkage, and decayed; then comes the update.

extern "C" __global__ void sgd(
    Arrays arrays, const T* partial, long long partials, double clip_value, double clip_norm,
    double learning_rate, double momentum, long long nesterov) {
  __shared__ T sums[256];
  T shrink = shrinkage(sums, partial, partials, T(clip_norm));
  Piece piece = piece_of(arrays, blockIdx.x);
  int i = piece.array;
  T* value = arrays.value[i];
  T* velocity = arrays.first[i];
  for (long long j = piece.begin + threadIdx.x; j < piece.end; j += blockDim.x) {
    T g = regular(arrays.grad[i][j], value[j], T(clip_value), shrink, T(arrays.decay[i]));
    T step = T(-learning_rate) * g;
    if (velocity) {
      T v = T(momentum) * velocity[j] + step;
      velocity[j] = v;
      step = nesterov ? T(momentum) * v + step : v;
    }
    value[j] += step;
  }
}

extern "C" __global__ void adam(
    Arrays arrays, const T* partial, long long partials, double clip_value, double clip_norm,
    double rate, double beta_1, double beta_2, double epsilon) {
  __shared__ T sums[256];
  T shrink = shrinkage(sums, partial, partials, T(clip_norm));
  Piece piece = piece_of(arrays, blockIdx.x);
  int i = piece.array;
  T* value = arrays.value[i];
  T* first = arrays.first[i];
  T* second = arrays.second[i];
  for (long long j = piece.begin + threadIdx.x; j < piece.end; j += blockDim.x) {
    T g = regular(arrays.grad[i][j], value[j], T(clip_value), shrink, T(arrays.decay[i]));
    T m = T(beta_1) * first[j] + T(1.0 - beta_1) * g;
    T v = T(beta_2) * second[j] + T(1.0 - beta_2) * (g * g);
    first[j] = m;
    second[j] = v;
    value[j] -= T(rate) * m / (sqrt(v) + T(epsilon));
  }
}
