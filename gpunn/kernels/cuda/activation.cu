// Bias and activation in one pass over memory, and the gradient of an activation in another.
//
// Compile with -DREAL=float or double, and -DACTIVATION=relu (or another name below). Functions NAME
// and NAME_gradient take the parameter a (a slope, a limit) if the formula has one. A test of the
// form x < 0 rather than x >= 0 passes NaN through, so that it shows.

#include "common.cuh"

typedef REAL T;

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define GRADIENT JOIN(ACTIVATION, _gradient)

__device__ T logistic(T x) {
  T e = exp(-fabs(x));
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

// From the output h: dJ/dx = g f'(x).

__device__ T identity(T x, T) { return x; }
__device__ T identity_gradient(T g, T, T) { return g; }

__device__ T sigmoid(T x, T) { return logistic(x); }
__device__ T sigmoid_gradient(T g, T h, T) { return g * (h * (T(1) - h)); }

__device__ T tanh_(T x, T) { return tanh(x); }
__device__ T tanh__gradient(T g, T h, T) { return g * (T(1) - h * h); }

__device__ T relu(T x, T) { return x < T(0) ? T(0) : x; }
__device__ T relu_gradient(T g, T h, T) { return g * (h > T(0) ? T(1) : T(0)); }

__device__ T leaky_relu(T x, T a) { return x < T(0) ? a * x : x; }
__device__ T leaky_relu_gradient(T g, T h, T a) { return g * (h > T(0) ? T(1) : a); }

__device__ T elu(T x, T a) { return x < T(0) ? a * expm1(x) : x; }
__device__ T elu_gradient(T g, T h, T a) { return g * (h > T(0) ? T(1) : h + a); }

__device__ T softplus(T x, T) { return (x < T(0) ? T(0) : x) + log1p(exp(-fabs(x))); }
__device__ T softplus_gradient(T g, T h, T) { return g * -expm1(-h); }

// From the input x.

__device__ T silu(T x, T) { return x * logistic(x); }
__device__ T silu_gradient(T g, T x, T) {
  T s = logistic(x);
  return g * (s * (T(1) + x * (T(1) - s)));
}

__device__ T gelu_share(T x, T approximate) {
  if (approximate == T(0)) return T(0.5) * erfc(x * T(-0.7071067811865476));
  return logistic(T(1.5957691216057308) * (x + T(0.044715) * (x * x * x)));
}
__device__ T gelu(T x, T approximate) { return x * gelu_share(x, approximate); }
__device__ T gelu_gradient(T g, T x, T approximate) {
  T p = gelu_share(x, approximate), density = exp(T(-0.5) * x * x) * T(0.3989422804014327);
  if (approximate != T(0))
    density = T(2) * p * (T(1) - p) *
              (T(0.7978845608028654) * (T(1) + T(3) * T(0.044715) * x * x));
  return g * (p + x * density);
}

__device__ T selu(T x, T) {
  return x < T(0) ? T(1.7580993408473766) * expm1(x) : T(1.0507009873554805) * x;
}
__device__ T selu_gradient(T g, T x, T) {
  return g * (x > T(0) ? T(1.0507009873554805) : T(1.7580993408473766) * exp(x));
}

__device__ T celu(T x, T a) { return x < T(0) ? a * expm1(x * (T(1) / a)) : x; }
__device__ T celu_gradient(T g, T x, T a) { return g * (x > T(0) ? T(1) : exp(x * (T(1) / a))); }

// With w = min(e^x, 1) and v = min(e^-x, 1): tanh(log(1 + e^x)) = above / (above + rest).
struct Mish {
  T w, v, above, rest;
  __device__ Mish(T x) {
    T e = exp(-fabs(x));
    w = x < T(0) ? e : T(1);
    v = x < T(0) ? T(1) : e;
    above = w * (w + T(2) * v);
    rest = T(2) * v * v;
  }
};
__device__ T mish(T x, T) {
  Mish m(x);
  return x * (m.above / (m.above + m.rest));
}
__device__ T mish_gradient(T g, T x, T) {
  Mish m(x);
  T below = m.above + m.rest, both = m.w + m.v;
  T slope = m.above * below * both + x * m.rest * (below + m.above) * m.w;
  return g * (slope * (T(1) / (below * below * both)));
}

// A reciprocal takes fewer registers than a division.
__device__ T softsign(T x, T) { return x * (T(1) / (T(1) + fabs(x))); }
__device__ T softsign_gradient(T g, T x, T) {
  T share = T(1) / (T(1) + fabs(x));
  return g * (share * share);
}

__device__ T clipped(T x, T lowest, T highest) {
  return x < lowest ? lowest : (x > highest ? highest : x);
}

__device__ T hardswish(T x, T) { return x * clipped(x + T(3), T(0), T(6)) / T(6); }
__device__ T hardswish_gradient(T g, T x, T) {
  T slope = fabs(x) >= T(3) ? (x > T(0) ? T(1) : T(0)) : x * T(1.0 / 3) + T(0.5);  // NaN stays NaN
  return g * slope;
}

// From the output h again.

__device__ T log_sigmoid(T x, T) { return (x < T(0) ? x : T(0)) - log1p(exp(-fabs(x))); }
__device__ T log_sigmoid_gradient(T g, T h, T) { return g * -expm1(h); }

__device__ T hardtanh(T x, T a) { return clipped(x, -a, a); }
__device__ T hardtanh_gradient(T g, T h, T a) { return g * (fabs(h) < a ? T(1) : T(0)); }

__device__ T relu6(T x, T) { return clipped(x, T(0), T(6)); }
__device__ T relu6_gradient(T g, T h, T) { return g * (fabs(h - T(3)) < T(3) ? T(1) : T(0)); }

__device__ T hardsigmoid(T x, T) { return clipped(x + T(3), T(0), T(6)) / T(6); }
__device__ T hardsigmoid_gradient(T g, T h, T) {
  return g * (h > T(0) && h < T(1) ? T(1.0 / 6) : T(0));
}

__device__ T softshrink(T x, T a) { return x - clipped(x, -a, a); }
__device__ T softshrink_gradient(T g, T h, T) { return g * (fabs(h) > T(0) ? T(1) : T(0)); }

// z += bias; h = f(z), for (n, p) arrays. `z` and `h` may be the same array; `bias` may be null.
// The grid's x and the block's y count rows, the others columns, so no thread divides to find its
// column.
extern "C" __global__ void bias_activation(
    T* z, const T* bias, T* h, long long n, long long p, double a) {
  long long lane = (long long)blockIdx.y * blockDim.x + threadIdx.x;
  long long lanes = (long long)gridDim.y * blockDim.x, step = (long long)gridDim.x * blockDim.y;
  bool packed = aligned(z, bias, h) && p * sizeof(T) % PACK_BYTES == 0;
  for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < n; row += step) {
    T *z_row = z + row * p, *h_row = h + row * p;
    over<T>(0, p, lane, lanes, packed, [=](auto pack, long long i) {
      auto x = pack.load(z_row + i);
      if (bias) {
        auto b = pack.load(bias + i);
        for (int k = 0; k < pack.n; ++k) x.of[k] += b.of[k];
        if (z != h) x.store(z_row + i);
      }
      for (int k = 0; k < pack.n; ++k) x.of[k] = ACTIVATION(x.of[k], T(a));
      x.store(h_row + i);
    });
  }
}

// h = f(x); x is unchanged.
extern "C" __global__ void activation(const T* x, T* h, long long size, double a) {
  over_all<T>(size, aligned(x, h), [=](auto pack, long long i) {
    auto some = pack.load(x + i);
    for (int k = 0; k < pack.n; ++k) some.of[k] = ACTIVATION(some.of[k], T(a));
    some.store(h + i);
  });
}

// grad_x = dJ/dx from grad = dJ/dh and what the forward pass saved.
extern "C" __global__ void activation_backward(
    const T* grad, const T* saved, T* grad_x, long long size, double a) {
  over_all<T>(size, aligned(grad, saved, grad_x), [=](auto pack, long long i) {
    auto g = pack.load(grad + i), s = pack.load(saved + i);
    for (int k = 0; k < pack.n; ++k) g.of[k] = GRADIENT(g.of[k], s.of[k], T(a));
    g.store(grad_x + i);
  });
}

// The same, and sums[c] = the sum of column c of grad_x: the gradient of the bias. A block of 256
// threads takes one column per x, and its y (a power of two) go down the rows together.
extern "C" __global__ void activation_backward_sums(
    const T* grad, const T* saved, T* __restrict__ grad_x, T* sums, long long n, long long p,
    double a) {
  __shared__ T partial[256];
  long long column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  T sum = T(0);
  if (column < p)
    for (long long row = threadIdx.y; row < n; row += blockDim.y) {
      long long i = row * p + column;
      T g = GRADIENT(grad[i], saved[i], T(a));
      grad_x[i] = g;
      sum += g;
    }
  T* mine = partial + threadIdx.y * blockDim.x + threadIdx.x;
  *mine = sum;
  for (int rows = blockDim.y / 2; rows > 0; rows /= 2) {
    __syncthreads();
    if (threadIdx.y < rows) *mine += mine[rows * blockDim.x];
  }
  if (threadIdx.y == 0 && column < p) sums[column] = *mine;
}
