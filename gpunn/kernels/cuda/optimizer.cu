// The whole step of an optimizer, for up to MOST arrays, in one launch.
//
// Compile with -DREAL=float or double, -DMOST=... and -DRULE=one of the rules below. The table of
// arrays is passed by value, in the kernel's parameters: gradients are new arrays at every step,
// and a table on the device would have to be uploaded each time. Block b works on the array whose
// range of blocks contains b, on a piece of PIECE numbers.

#include "common.cuh"

typedef REAL T;

#define PIECE 4096

struct Arrays {  // the Python code uses the same layout
  T* value[MOST];
  const T* grad[MOST];
  T* first[MOST];  // the states; null if a rule has fewer
  T* second[MOST];
  T* third[MOST];
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

// A loop over the entries of a piece, divided among the threads of the block.
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

// The gradient for an update. Without decay the value is not read, since 0 times NaN is NaN.
__device__ T regular(T g, T value, T limit, T shrink, T decay) {
  g = clipped(g, limit) * shrink;
  return decay == T(0) ? g : g + decay * value;
}

// The sum of the values of a block's threads; every thread gets it.
__device__ T sum_of_block(T* sums, T own) {
  sums[threadIdx.x] = own;
  for (int width = blockDim.x / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
  }
  __syncthreads();
  return sums[0];
}

// partial[first + b] = the sum of squares of the (clipped) gradients in block b's pieces. The
// number of blocks is limited, because every block of the update adds up all of `partial`.
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

// The numbers of a rule: the step size, the epsilon added to a divisor, and its settings.
struct Numbers {
  T rate, epsilon;
  double p, q, r;
};

// The rules. Each updates one entry's value x and states s from its gradient g; `states` is the
// maximum number of states.

struct sgd {  // p: momentum; q: whether to look ahead
  enum { states = 1 };
  static __device__ void apply(const Numbers& number, T& x, T g, T* s) {
    T step = -number.rate * g;
    if (number.p != 0.0) {
      s[0] = T(number.p) * s[0] + step;
      step = number.q != 0.0 ? T(number.p) * s[0] + step : s[0];
    }
    x += step;
  }
};

struct adam {  // p and q: the betas
  enum { states = 2 };
  static __device__ void apply(const Numbers& number, T& x, T g, T* s) {
    s[0] = T(number.p) * s[0] + T(1.0 - number.p) * g;
    s[1] = T(number.q) * s[1] + T(1.0 - number.q) * (g * g);
    x -= number.rate * s[0] / (sqrt(s[1]) + number.epsilon);
  }
};

struct rmsprop {  // p: the beta; q: momentum; r: whether centered
  enum { states = 3 };
  static __device__ void apply(const Numbers& number, T& x, T g, T* s) {
    T spread = s[0] = T(number.p) * s[0] + T(1.0 - number.p) * (g * g);
    if (number.r != 0.0) {
      s[1] = T(number.p) * s[1] + T(1.0 - number.p) * g;
      spread -= s[1] * s[1];
      if (spread < T(0)) spread = T(0);  // NaN stays NaN
    }
    T step = g / (sqrt(spread) + number.epsilon);
    if (number.q != 0.0) step = s[2] = T(number.q) * s[2] + step;
    x -= number.rate * step;
  }
};

struct adagrad {
  enum { states = 1 };
  static __device__ void apply(const Numbers& number, T& x, T g, T* s) {
    s[0] += g * g;
    x -= number.rate * g / (sqrt(s[0]) + number.epsilon);
  }
};

struct lion {  // p and q: the betas
  enum { states = 1 };
  static __device__ void apply(const Numbers& number, T& x, T g, T* s) {
    T direction = T(number.p) * s[0] + T(1.0 - number.p) * g;
    s[0] = T(number.q) * s[0] + T(1.0 - number.q) * g;
    x -= number.rate * (direction > T(0) ? T(1) : direction < T(0) ? T(-1) : direction);
  }
};

struct gradient_sum {  // the value stays
  enum { states = 1 };
  static __device__ void apply(const Numbers& number, T&, T g, T* s) {
    s[0] += number.rate * g;
  }
};

struct average {  // of the weight, which is passed as the gradient
  enum { states = 0 };
  static __device__ void apply(const Numbers& number, T& x, T g, T*) {
    x += number.rate * (g - x);
  }
};

// Clip g, scale it by the shrinkage, apply decay to it or to the value, and then apply the rule.
// For captured steps, whose numbers change, `present` (else null) points to the step size, the
// factor of the decays and epsilon, which replace the arguments.
extern "C" __global__ void update(
    const __grid_constant__ Arrays arrays, const T* partial, long long partials, double clip_value,
    double clip_norm, double step_size, double epsilon, double decay_factor, const double* present,
    long long decoupled, double p, double q, double r) {
  __shared__ T sums[256];
  T shrink = shrinkage(sums, partial, partials, T(clip_norm));
  Piece piece = piece_of(arrays, blockIdx.x);
  if (present) step_size = present[0], decay_factor = present[1], epsilon = present[2];
  double decays = arrays.decay[piece.array] * decay_factor;
  T decay = T(decoupled ? 0.0 : decays), keep = T(decoupled ? 1.0 - decays : 1.0);
  const Numbers numbers = {T(step_size), T(epsilon), p, q, r};
  T *value = arrays.value[piece.array], *first = arrays.first[piece.array];
  T *second = arrays.second[piece.array], *third = arrays.third[piece.array];
  Half* rounded = arrays.rounded[piece.array];
  const T* grad = arrays.grad[piece.array];
  bool packs = aligned(value, grad, first, second, third, rounded);
  over_piece(piece, packs, [=](auto pack, long long j) {
    auto x = pack.load(value + j), g = pack.load(grad + j);
    T* const states[3] = {first, second, third};
    decltype(pack) s[3];
#pragma unroll
    for (int i = 0; i < RULE::states; ++i)
      if (states[i]) s[i] = pack.load(states[i] + j);
#pragma unroll
    for (int k = 0; k < pack.n; ++k) {
      T own[3] = {s[0].of[k], s[1].of[k], s[2].of[k]};
      T r = regular(g.of[k], x.of[k], T(clip_value), shrink, decay);
      x.of[k] *= keep;
      RULE::apply(numbers, x.of[k], r, own);
      for (int i = 0; i < RULE::states; ++i) s[i].of[k] = own[i];
    }
    x.store(value + j);
    round_to(rounded, j, x);
#pragma unroll
    for (int i = 0; i < RULE::states; ++i)
      if (states[i]) s[i].store(states[i] + j);
  });
}
