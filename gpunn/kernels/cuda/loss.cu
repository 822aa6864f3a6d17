// Losses: each sample's loss, or their sum, and the gradient of that sum, in one pass.
//
// Compile with -DREAL=float or double. A block is `rows` x `lanes` threads (blockDim.y, blockDim.x);
// `lanes`, a power of two, work on one sample together. The order of every sum is fixed, so
// results are reproducible. `shared` holds blockDim.x * blockDim.y numbers, a power of two.
//
// A sample's scale is scale[row * stride], or `constant` if `scale` is null. If `cost` is null, the
// samples' losses are written to `losses` (n,). Otherwise their sum is written to `cost`, `losses`
// is scratch for one number per block, and `arrived`, 0 between launches, counts finished blocks.

typedef REAL T;

extern __shared__ unsigned char shared_bytes[];

#define SHARED ((T*)shared_bytes)

__device__ T add(T a, T b) { return a + b; }
__device__ T larger(T a, T b) { return a < b || b != b ? b : a; }  // NaN wins

// Combine the values of some threads, a power of two; every thread gets the result. `me` is this
// thread's number among them, and `values` is shared memory.
template <typename Combine>
__device__ T over(T* values, unsigned me, unsigned threads, T value, Combine combine) {
  __syncthreads();
  values[me] = value;
  for (unsigned width = threads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (me < width) values[me] = combine(values[me], values[me + width]);
  }
  __syncthreads();
  return values[0];
}

// Combine the lanes of a row; every lane gets the result.
template <typename Combine>
__device__ T over_row(T value, Combine combine) {
  return over(SHARED + threadIdx.y * blockDim.x, threadIdx.x, blockDim.x, value, combine);
}

// Write the losses, held by the first lane of each row, or their sum. The last block to arrive adds
// up the blocks' sums in order, and resets the counter.
__device__ void write_losses(
    T loss, T* losses, T* cost, unsigned* arrived, long long row, long long n) {
  bool has_loss = row < n && threadIdx.x == 0;
  if (!cost) {
    if (has_loss) losses[row] = loss;
    return;
  }
  __shared__ bool is_last;
  unsigned me = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  T sum = over(SHARED, me, threads, has_loss ? loss : T(0), add);
  if (me == 0) {
    losses[blockIdx.x] = sum;
    __threadfence();  // a block that sees the arrival also sees the sum
    is_last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const volatile T* sums = losses;
  sum = T(0);
  for (unsigned block = me; block < gridDim.x; block += threads) sum += sums[block];
  sum = over(SHARED, me, threads, sum, add);
  if (me == 0) *cost = sum;
}

__device__ T scale_of(const T* scale, long long stride, double constant, long long row) {
  return scale ? scale[row * stride] : T(constant);
}

// The type of `targets`: labels (n,) or rows (n, k).
#ifdef LABELS
typedef long long Target;
#else
typedef T Target;
#endif

// y log y; 0 for 0.
__device__ T times_log(T y) { return y > T(0) || y != y ? y * log(y) : T(0); }

// The largest of a row's logits; this lane begins at the logit `first`.
__device__ T largest_of(const T* z, long long first, long long k) {
  T largest = z[0];
  for (long long j = first; j < k; j += blockDim.x) largest = larger(largest, z[j]);
  return over_row(largest, larger);
}

// loss = scale * (sum_k t_k log sum_j e^z_j - sum_k t_k z_k); grad = scale * (softmax(z) sum t - t).
// With DIVERGENCE, the entropy of t is subtracted from the loss.
extern "C" __global__ void softmax_cross_entropy(
    const T* logits, const Target* targets, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long k) {
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  bool inside = row < n;  // threads outside still join in the sums
  const T* z = logits + (inside ? row : 0) * k;
  long long first = inside ? threadIdx.x : k;

  T largest = largest_of(z, first, k);
  T total = T(0), mass = T(0), dot = T(0);
#ifdef LABELS
  long long label = inside ? targets[row] : 0;
  bool valid = label >= 0 && label < k;
  mass = valid ? T(1) : T(nan(""));
  for (long long j = first; j < k; j += blockDim.x) {
    total += exp(z[j] - largest);
    if (j == label) dot = z[j] - largest;
  }
  dot = over_row(dot, add);
#else
  const T* t = targets + (inside ? row : 0) * k;
  for (long long j = first; j < k; j += blockDim.x) {
    total += exp(z[j] - largest);
    mass += t[j];
    dot += t[j] * (z[j] - largest);
#ifdef DIVERGENCE
    dot -= times_log(t[j]);
#endif
  }
  mass = over_row(mass, add);
  dot = over_row(dot, add);
#endif
  total = over_row(total, add);

  T weight = T(0);
  if (inside) {
    weight = scale_of(scale, stride, constant, row);
    T* g = grad + row * k;
    for (long long j = first; j < k; j += blockDim.x) {
#ifdef LABELS
      T target = valid ? (j == label ? T(1) : T(0)) : T(nan(""));
#else
      T target = t[j];
#endif
      g[j] = weight * (exp(z[j] - largest) * (mass / total) - target);
    }
  }
  write_losses(weight * (mass * log(total) - dot), losses, cost, arrived, row, n);
}

// The same for labels of rows (n, k), where `positions` rows share a scale and the label `ignored`
// does not count. The target is 1 - smoothing at the label, plus smoothing / k everywhere.
extern "C" __global__ void sequence_cross_entropy(
    const T* logits, const long long* labels, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long k,
    long long positions, long long ignored, double smoothing) {
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  bool inside = row < n;
  const T* z = logits + (inside ? row : 0) * k;
  long long first = inside ? threadIdx.x : k, label = inside ? labels[row] : ignored;
  bool valid = label >= 0 && label < k, counts = label != ignored;
  T low = T(smoothing) / T(k), high = T(1) - T(smoothing), total = T(0), dot = T(0);

  T largest = largest_of(z, first, k);
  for (long long j = first; j < k; j += blockDim.x) {
    total += exp(z[j] - largest);
    if (j == label) dot += high * (z[j] - largest);
    if (low > T(0)) dot += low * (z[j] - largest);
  }
  total = over_row(total, add);
  dot = over_row(dot, add);

  T weight = inside ? scale_of(scale, stride, constant, row / positions) : T(0);
  if (!counts) weight *= T(0);  // NaN stays NaN
  if (counts && !valid) weight = T(nan(""));
  T* g = grad + (inside ? row : 0) * k;
  for (long long j = first; j < k; j += blockDim.x) {
    T target = j == label ? high + low : low;
    g[j] = counts ? weight * (exp(z[j] - largest) / total - target) : weight;
  }
  write_losses(counts ? weight * (log(total) - dot) : weight, losses, cost, arrived, row, n);
}

// Losses that are a sum over a sample's outputs (n, p), each with its own target.

__device__ T binary_cross_entropy_of(T z, T y) {
  return (z < T(0) ? T(0) : z) - y * z + log1p(exp(-fabs(z)));
}
__device__ T binary_cross_entropy_gradient(T z, T y) {
  T e = exp(-fabs(z));
  return (z < T(0) ? e : T(1)) / (T(1) + e) - y;
}
__device__ T limited(T x, T least, T most) { return x < least ? least : x > most ? most : x; }
__device__ T sign(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : x; }  // NaN stays NaN

template <typename Loss, typename Gradient>
__device__ void by_output(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p, Loss loss,
    Gradient gradient) {
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  bool inside = row < n;
  T weight = inside ? scale_of(scale, stride, constant, row) : T(0);
  T sum = T(0);
  for (long long j = inside ? threadIdx.x : p; j < p; j += blockDim.x) {
    T x = prediction[row * p + j], y = target[row * p + j];
    sum += loss(x, y);
    grad[row * p + j] = weight * gradient(x, y);
  }
  sum = over_row(sum, add);
  write_losses(weight * sum, losses, cost, arrived, row, n);
}

extern "C" __global__ void sigmoid_binary_cross_entropy(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p) {
  by_output(prediction, target, scale, stride, constant, losses, cost, arrived, grad, n, p,
            binary_cross_entropy_of, binary_cross_entropy_gradient);
}

extern "C" __global__ void squared_error(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p) {
  by_output(prediction, target, scale, stride, constant, losses, cost, arrived, grad, n, p,
            [](T x, T y) { return T(0.5) * (x - y) * (x - y); }, [](T x, T y) { return x - y; });
}

extern "C" __global__ void absolute_error(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p) {
  by_output(prediction, target, scale, stride, constant, losses, cost, arrived, grad, n, p,
            [](T x, T y) { return fabs(x - y); }, [](T x, T y) { return sign(x - y); });
}

extern "C" __global__ void huber(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p, double delta) {
  T d = T(delta);
  auto clipped = [=](T x, T y) { return limited(x - y, -d, d); };
  by_output(prediction, target, scale, stride, constant, losses, cost, arrived, grad, n, p,
            [=](T x, T y) {
              T c = clipped(x, y);
              return c * (x - y - T(0.5) * c);
            },
            clipped);
}

extern "C" __global__ void poisson(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p, double deviance) {
  bool whole = deviance != 0.0;
  by_output(prediction, target, scale, stride, constant, losses, cost, arrived, grad, n, p,
            [=](T x, T y) { return exp(x) - y * x + (whole ? times_log(y) - y : T(0)); },
            [](T x, T y) { return exp(x) - y; });
}

// Targets are 0 and 1, or -1 and 1.
extern "C" __global__ void hinge(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p, double squared) {
  bool square = squared != 0.0;
  auto margin = [](T x, T y) {
    T m = T(1) - sign(y - T(0.5)) * x;
    return m < T(0) ? T(0) : m;
  };
  by_output(prediction, target, scale, stride, constant, losses, cost, arrived, grad, n, p,
            [=](T x, T y) {
              T m = margin(x, y);
              return square ? m * m : m;
            },
            [=](T x, T y) {
              T m = margin(x, y);
              return -sign(y - T(0.5)) * (square ? T(2) * m : sign(m));
            });
}

// The divergence of the logarithms of probabilities from the targets.
extern "C" __global__ void divergence_of_logarithms(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p) {
  by_output(prediction, target, scale, stride, constant, losses, cost, arrived, grad, n, p,
            [](T x, T y) { return times_log(y) - y * x; }, [](T x, T y) { return -y; });
}

// loss = scale * (1 - x . y / |x| |y|), where lengths are raised to at least epsilon.
extern "C" __global__ void cosine_distance(
    const T* prediction, const T* target, const T* scale, long long stride, double constant,
    T* losses, T* cost, unsigned* arrived, T* grad, long long n, long long p, double epsilon) {
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  bool inside = row < n;
  const T *x = prediction + (inside ? row : 0) * p, *y = target + (inside ? row : 0) * p;
  T squares = T(0), others = T(0), cosine = T(0);
  for (long long j = inside ? threadIdx.x : p; j < p; j += blockDim.x) {
    squares += x[j] * x[j];
    others += y[j] * y[j];
  }
  squares = over_row(squares, add);
  others = over_row(others, add);
  T least = T(epsilon), length = sqrt(squares), other = larger(sqrt(others), least);
  T norm = larger(length, least);
  for (long long j = inside ? threadIdx.x : p; j < p; j += blockDim.x)
    cosine += (x[j] / norm) * (y[j] / other);  // from unit vectors: exact in one dimension
  cosine = over_row(cosine, add);
  T turning = length > least ? cosine : T(0);
  T weight = inside ? scale_of(scale, stride, constant, row) : T(0);
  for (long long j = inside ? threadIdx.x : p; j < p; j += blockDim.x)
    grad[row * p + j] = weight * ((turning * (x[j] / norm) - y[j] / other) / norm);
  write_losses(inside ? weight * (T(1) - cosine) : T(0), losses, cost, arrived, row, n);
}
