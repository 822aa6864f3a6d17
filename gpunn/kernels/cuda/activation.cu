// Bias and activation in one pass over memory, and the gradient of an activation in another.
//
// Compile with -DREAL=float or double, and -DACTIVATION=relu (or another name below). Functions NAME
// and NAME_gradient take the parameter a (a slope, a limit) where the formula has one. A test of
// the form x < 0 rather than x >= 0 lets NaN through, so that it is seen.

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

// z += bias; h = f(z). `z` and `h` may be one array; `bias` may be null. (n, p), row by row.
extern "C" __global__ void bias_activation(T* z, const T* bias, T* h, long long size, long long p, double a) {
  long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step) {
    T x = bias ? z[i] + bias[i % p] : z[i];
    if (bias && z != h) z[i] = x;
    h[i] = ACTIVATION(x, T(a));
  }
}

// h = f(x), and x stays as it is.
extern "C" __global__ void activation(const T* x, T* h, long long size, double a) {
  long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step)
    h[i] = ACTIVATION(x[i], T(a));
}

// grad_x = dJ/dx from grad = dJ/dh and what the forward pass saved.
extern "C" __global__ void activation_backward(
    const T* grad, const T* saved, T* grad_x, long long size, double a) {
  long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step)
    grad_x[i] = GRADIENT(grad[i], saved[i], T(a));
}

// The same, and sums[c] = the sum of column c of grad_x: the gradient of the bias. A block of
// (32, 8) threads works on 32 columns, eight rows at a time.
extern "C" __global__ void activation_backward_sums(
    const T* grad, const T* saved, T* grad_x, T* sums, long long n, long long p, double a) {
  __shared__ T partial[8][33];  // 33: no two columns of threads in one bank
  long long column = (long long)blockIdx.x * 32 + threadIdx.x;
  T sum = T(0);
  if (column < p)
    for (long long row = threadIdx.y; row < n; row += 8) {
      long long i = row * p + column;
      T g = GRADIENT(grad[i], saved[i], T(a));
      grad_x[i] = g;
      sum += g;
    }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= p) return;
  for (int y = 1; y < 8; ++y) sum += partial[y][threadIdx.x];
  sums[column] = sum;
}
