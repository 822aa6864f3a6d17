// The whole step of an optimizer, for up to MOST arrays, in one launch.
//
// Compile with -DREAL=float or double and -DMOST=.... The arrays come by value, in the kernel's
// parameters: gradients are new arrays at every step, and a table on the device would have to be
// sent there each time. Block b works on the array whose range of blocks holds b, on a piece of
// PIECE numbers.

#include "common.cuh"

typedef REAL T;

#define PIECE 4096

struct Arrays {  // its layout is known to the Python side, too
  T* value[MOST];
  const T* grad[MOST];
  T* first[MOST];   // the velocity, or the first moment
  T* second[MOST];  // the second moment
  Half* rounded[MOST];  // a copy of the value in bfloat16, or null; for float32 only
  long long size[MOST];
  double decay[MOST];
  long long first_block[MOST + 1];
  long long count;
};

struct Piece {
  int array;
  long long begin, end;
};

__device__ Piece piece_of(const Arrays& arrays, long long block) {
  int i = 0;
  while (i + 1 < arrays.count && block >= arrays.first_block[i + 1]) ++i;
  long long begin = (block - arrays.first_block[i]) * PIECE;
  long long end = begin + PIECE < arrays.size[i] ? begin + PIECE : arrays.size[i];
  return {i, begin, end};
}

// The entries of a piece, divided among the threads of the block.
template <typename Work>
__device__ void over_piece(Piece piece, bool aligned, Work work) {
  over<T>(piece.begin, piece.end, threadIdx.x, blockDim.x, aligned, work);
}

// Write a value's copy in bfloat16, if there is one, from entry j on.
template <int N>
__device__ void round_to(Half* copy, long long j, Pack<T, N> x) {
  if (!copy) return;
  Pack<Half, N> rounded;
  for (int k = 0; k < N; ++k) rounded.of[k] = upper_half(__float_as_uint(float(x.of[k])));
  rounded.store(copy + j);
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

// partial[first + b] = the sum of squares of the (clipped) gradients in block b's pieces. Few blocks
// are launched, however many pieces there are: every block of the update adds up all of `partial`.
extern "C" __global__ void squared_norm(
    const __grid_constant__ Arrays arrays, T* partial, long long first, double clip_value) {
  __shared__ T sums[256];
  T sum = T(0);
  long long pieces = arrays.first_block[arrays.count];
  for (long long b = blockIdx.x; b < pieces; b += gridDim.x) {
    Piece piece = piece_of(arrays, b);
    const T* grad = arrays.grad[piece.array];
    over_piece(piece, aligned(grad), [=, &sum](auto pack, long long j) {
      auto some = pack.load(grad + j);
      for (int k = 0; k < pack.n; ++k) {
        T g = clipped(some.of[k], T(clip_value));
        sum += g * g;
      }
    });
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

// In both kernels g is clipped, scaled by the shrinkage, and decayed; then comes the update. A step
// that is captured and replayed has numbers that change: `present`, if not null, points to the learning
// rate, which counts in the place of the argument, and to what multiplies the decays.

extern "C" __global__ void sgd(
    const __grid_constant__ Arrays arrays, const T* partial, long long partials, double clip_value,
    double clip_norm, double learning_rate, const double* present, double momentum,
    long long nesterov) {
  __shared__ T sums[256];
  T shrink = shrinkage(sums, partial, partials, T(clip_norm));
  Piece piece = piece_of(arrays, blockIdx.x);
  const T* grad = arrays.grad[piece.array];
  T *value = arrays.value[piece.array], *velocity = arrays.first[piece.array];
  Half* rounded = arrays.rounded[piece.array];
  T rate = T(present ? present[0] : learning_rate);
  T decay = T(arrays.decay[piece.array] * (present ? present[1] : 1.0));
  over_piece(piece, aligned(value, grad, velocity, rounded), [=](auto pack, long long j) {
    auto x = pack.load(value + j), g = pack.load(grad + j);
    auto v = velocity ? pack.load(velocity + j) : pack;
    for (int k = 0; k < pack.n; ++k) {
      T step = -rate * regular(g.of[k], x.of[k], T(clip_value), shrink, decay);
      if (velocity) {
        v.of[k] = T(momentum) * v.of[k] + step;
        step = nesterov ? T(momentum) * v.of[k] + step : v.of[k];
      }
      x.of[k] += step;
    }
    if (velocity) v.store(velocity + j);
    x.store(value + j);
    round_to(rounded, j, x);
  });
}

extern "C" __global__ void adam(
    const __grid_constant__ Arrays arrays, const T* partial, long long partials, double clip_value,
    double clip_norm, double learning_rate, const double* present, double beta_1, double beta_2,
    double epsilon) {
  __shared__ T sums[256];
  T shrink = shrinkage(sums, partial, partials, T(clip_norm));
  Piece piece = piece_of(arrays, blockIdx.x);
  const T* grad = arrays.grad[piece.array];
  T *value = arrays.value[piece.array], *first = arrays.first[piece.array];
  Half* rounded = arrays.rounded[piece.array];
  T *second = arrays.second[piece.array], rate = T(present ? present[0] : learning_rate);
  T decay = T(arrays.decay[piece.array] * (present ? present[1] : 1.0));
  over_piece(piece, aligned(value, grad, first, second, rounded), [=](auto pack, long long j) {
    auto x = pack.load(value + j), g = pack.load(grad + j);
    auto m = pack.load(first + j), v = pack.load(second + j);
    for (int k = 0; k < pack.n; ++k) {
      T r = regular(g.of[k], x.of[k], T(clip_value), shrink, decay);
      m.of[k] = T(beta_1) * m.of[k] + T(1.0 - beta_1) * r;
      v.of[k] = T(beta_2) * v.of[k] + T(1.0 - beta_2) * (r * r);
      x.of[k] -= rate * m.of[k] / (sqrt(v.of[k]) + T(epsilon));
    }
    x.store(value + j);
    round_to(rounded, j, x);
    m.store(first + j);
    v.store(second + j);
  });
}
