// Normalisation, and PReLU; the formulas are in gpunn/kernels/norm.py and prelu.py.
//
// Compile with -DREAL=float or double. The order of every sum is fixed, so results are
// reproducible. `shared` holds a Moments for each thread of a block.
//
// In a norm within samples, the entries of a part are normalised together: `width` neighbouring
// channels at each of `positions` positions. Its statistics are a mean and a scale. blockDim.x
// threads share a part, and a block takes blockDim.y parts.
//
// In a norm over the batch, and in sums over all rows, a block takes blockDim.x neighbouring
// channels of a range of rows; gridDim.y is the number of ranges. The blocks' partial results, also
// called parts, are combined by the kernel that reads them. The statistics are three rows of
// `channels`: the mean, the scale, and the variance with divisor n - 1.

#include "common.cuh"

typedef REAL T;

extern __shared__ unsigned char shared_bytes[];

struct Pair {
  T a, b;
  __device__ Pair operator+(Pair other) const { return {a + other.a, b + other.b}; }
};

// The number, the mean, and the sum of squared deviations of some entries.
struct Moments {
  T n, mean, squares;
  __device__ Moments operator+(Moments other) const {
    T total = n + other.n;
    if (total == T(0)) return *this;
    T deviation = other.mean - mean, share = other.n / total;
    return {total, mean + deviation * share, squares + other.squares + deviation * deviation * n * share};
  }
};

// Add up the values of some threads, a power of two; every thread gets the sum. `me` is this
// thread's number among them, and their places in `values` are `stride` apart.
template <typename Item>
__device__ Item add_up(Item* values, unsigned me, unsigned threads, unsigned stride, Item value) {
  __syncthreads();
  values[me * stride] = value;
  for (unsigned width = threads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (me < width) values[me * stride] = values[me * stride] + values[(me + width) * stride];
  }
  __syncthreads();
  return values[0];
}

template <typename Item>
__device__ Item add_up_row(Item value) {
  Item* values = (Item*)shared_bytes + threadIdx.y * blockDim.x;
  return add_up(values, threadIdx.x, blockDim.x, 1, value);
}

template <typename Item>
__device__ Item add_up_column(Item value) {
  return add_up((Item*)shared_bytes + threadIdx.x, threadIdx.y, blockDim.y, blockDim.x, value);
}

// Within samples

// A part of a batch: its start, and the threads' loop over it.
struct Part {
  long long positions, width, channels, group, first;

  __device__ Part(
      long long i, long long n, long long positions, long long channels, long long groups)
      : positions(i < n ? positions : 0), width(channels / groups), channels(channels) {
    long long row = i / groups;
    group = i - row * groups;
    first = row * positions * channels + group * width;
  }

  // work(i, j) for this thread's entries: i in the batch, j the channel.
  template <typename Work>
  __device__ void over(Work work) const {
    long long start = group * width;
    if (positions == 1) {
      for (long long j = threadIdx.x; j < width; j += blockDim.x) work(first + j, start + j);
      return;
    }
    for (long long e = threadIdx.x; e < positions * width; e += blockDim.x) {
      long long position = e / width, j = e - position * width;
      work(first + position * channels + j, start + j);
    }
  }
};

// y = gain (x - mean) scale + bias; `bias` may be null. The mean is taken as 0 if not `centred`.
extern "C" __global__ void row_norm(
    const T* x, const T* gain, const T* bias, T* y, T* statistics, long long n, long long positions,
    long long channels, long long groups, int centred, double epsilon) {
  long long i = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  Part part(i, n, positions, channels, groups);
  T count = T(positions * part.width), sum = T(0), mean = T(0);
  if (centred) {
    part.over([&](long long e, long long) { sum += x[e]; });
    mean = add_up_row(sum) / count;
  }
  Pair deviation = {T(0), T(0)};
  part.over([&](long long e, long long) {
    T d = x[e] - mean;
    deviation = deviation + Pair{d, d * d};
  });
  deviation = add_up_row(deviation);
  T correction = centred ? deviation.a / count : T(0);
  mean += correction;
  T scale = T(1) / sqrt(deviation.b / count - correction * correction + T(epsilon));
  part.over([&](long long e, long long j) {
    y[e] = (x[e] - mean) * scale * gain[j] + (bias ? bias[j] : T(0));
  });
  if (i < n && threadIdx.x == 0) {
    statistics[2 * i] = mean;
    statistics[2 * i + 1] = scale;
  }
}

// dJ/dx = scale (g - mean(g) - x_hat mean(g x_hat)) with g = gain dJ/dy.
extern "C" __global__ void row_norm_backward(
    const T* grad, const T* x, const T* statistics, const T* gain, T* grad_x, long long n,
    long long positions, long long channels, long long groups, int centred) {
  long long i = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  Part part(i, n, positions, channels, groups);
  const T* own = statistics + 2 * (i < n ? i : 0);
  T count = T(positions * part.width), mean = own[0], scale = own[1];
  Pair sum = {T(0), T(0)};
  part.over([&](long long e, long long j) {
    T g = gain[j] * grad[e];
    sum = sum + Pair{g, g * ((x[e] - mean) * scale)};
  });
  sum = add_up_row(sum);
  T mean_g = centred ? sum.a / count : T(0), towards_x = sum.b / count;
  part.over([&](long long e, long long j) {
    grad_x[e] = scale * (gain[j] * grad[e] - mean_g - (x[e] - mean) * scale * towards_x);
  });
}

// Over all rows

// This thread's channel, and the rows of its block.
struct Column {
  long long channel, channels, first, last;

  __device__ Column(long long n, long long channels)
      : channel((long long)blockIdx.x * blockDim.x + threadIdx.x), channels(channels) {
    long long rows = rows_of_a_range(n, gridDim.y);
    first = blockIdx.y * rows;
    last = first + rows < n ? first + rows : n;
  }

  static __device__ long long rows_of_a_range(long long n, long long ranges) {
    return (n + ranges - 1) / ranges;
  }

  __device__ bool inside() const { return channel < channels; }
  __device__ bool writes() const { return inside() && blockIdx.y == 0 && threadIdx.y == 0; }

  // work(row, i) for this thread's rows: i in the batch.
  template <typename Work>
  __device__ void over(Work work) const {
    if (inside())
      for (long long row = first + threadIdx.y; row < last; row += blockDim.y)
        work(row, row * channels + channel);
  }

  // The sum of item(part) over the results of `parts` blocks; every thread gets it.
  template <typename Item, typename Read>
  __device__ Item of_parts(long long parts, Item sum, Read item) const {
    if (inside())
      for (long long part = threadIdx.y; part < parts; part += blockDim.y) sum = sum + item(part);
    return add_up_column(sum);
  }
};

// Parts of the gradients of gain and bias, a row of `channels` each; `bias_sums` may be null. The
// statistics belong to samples, or to channels if `positions` is 0.
extern "C" __global__ void norm_sums(
    const T* grad, const T* x, const T* statistics, T* gain_sums, T* bias_sums, long long n,
    long long positions, long long channels, long long groups) {
  Column column(n, channels);
  long long group = column.channel / (channels / groups);
  Pair sum = {T(0), T(0)};
  column.over([&](long long row, long long i) {
    const T *mean = statistics + column.channel, *scale = mean + channels;
    if (positions) {
      long long sample = positions == 1 ? row : row / positions;
      mean = statistics + 2 * (sample * groups + group);
      scale = mean + 1;
    }
    sum = sum + Pair{grad[i] * ((x[i] - *mean) * *scale), grad[i]};
  });
  sum = add_up_column(sum);
  if (!column.inside() || threadIdx.y) return;
  long long place = blockIdx.y * channels + column.channel;
  gain_sums[place] = sum.a;
  if (bias_sums) bias_sums[place] = sum.b;
}

// The gradients of gain and bias, summed from their parts.
extern "C" __global__ void norm_totals(
    const T* gain_parts, const T* bias_parts, T* gain_sums, T* bias_sums, long long parts,
    long long channels) {
  Column column(1, channels);
  Pair sum = column.of_parts(parts, Pair{T(0), T(0)}, [&](long long part) {
    long long i = part * channels + column.channel;
    return Pair{gain_parts[i], bias_sums ? bias_parts[i] : T(0)};
  });
  if (!column.writes()) return;
  gain_sums[column.channel] = sum.a;
  if (bias_sums) bias_sums[column.channel] = sum.b;
}

// Parts of the statistics: the mean and the sum of squared deviations of each channel in a range of
// rows. They are computed from x minus the first row, whose size does not depend on the mean.
extern "C" __global__ void batch_norm_parts(
    const T* x, T* means, T* squares, long long n, long long channels) {
  Column column(n, channels);
  T origin = column.inside() ? x[column.channel] : T(0);
  Moments own = {T(0), T(0), T(0)};
  column.over([&](long long, long long i) {
    own.n += T(1);
    own.mean += x[i] - origin;
  });
  if (own.n > T(0)) own.mean /= own.n;
  Pair deviation = {T(0), T(0)};
  column.over([&](long long, long long i) {
    T d = x[i] - origin - own.mean;
    deviation = deviation + Pair{d, d * d};
  });
  if (own.n > T(0)) {
    own.squares = deviation.b - deviation.a * (deviation.a / own.n);
    own.mean += deviation.a / own.n;
  }
  own = add_up_column(own);
  if (!column.inside() || threadIdx.y) return;
  long long place = blockIdx.y * channels + column.channel;
  means[place] = own.mean;
  squares[place] = own.squares;
}

// y = gain (x - mean) scale + bias, for this thread's entries.
__device__ void scale_column(
    Column column, const T* x, T mean, T scale, const T* gain, const T* bias, T* y) {
  T factor = column.inside() ? scale * gain[column.channel] : T(0);
  T offset = column.inside() ? bias[column.channel] : T(0);
  column.over([&](long long, long long i) { y[i] = (x[i] - mean) * factor + offset; });
}

// y and the statistics, from the parts of the statistics.
extern "C" __global__ void batch_norm(
    const T* x, const T* gain, const T* bias, const T* means, const T* squares, T* y, T* statistics,
    long long n, long long channels, long long parts, double epsilon) {
  Column column(n, channels);
  long long rows = Column::rows_of_a_range(n, parts);
  Moments all = column.of_parts(parts, Moments{T(0), T(0), T(0)}, [&](long long part) {
    long long i = part * channels + column.channel, left = n - part * rows;
    return Moments{T(left < 0 ? 0 : left < rows ? left : rows), means[i], squares[i]};
  });
  T origin = column.inside() ? x[column.channel] : T(0);
  T mean = origin + all.mean, scale = T(1) / sqrt(all.squares / all.n + T(epsilon));
  if (column.writes()) {
    statistics[column.channel] = mean;
    statistics[channels + column.channel] = scale;
    statistics[2 * channels + column.channel] = all.squares / (all.n - T(1));
  }
  scale_column(column, x, mean, scale, gain, bias, y);
}

// y from a given mean and variance; mean and scale are written to the first rows of the statistics.
extern "C" __global__ void fixed_norm(
    const T* x, const T* gain, const T* bias, const T* running_mean, const T* running_variance,
    T* y, T* statistics, long long n, long long channels, double epsilon) {
  Column column(n, channels);
  T mean = T(0), scale = T(0);
  if (column.inside()) {
    mean = running_mean[column.channel];
    scale = T(1) / sqrt(running_variance[column.channel] + T(epsilon));
  }
  if (column.writes()) {
    statistics[column.channel] = mean;
    statistics[channels + column.channel] = scale;
  }
  scale_column(column, x, mean, scale, gain, bias, y);
}

// dJ/dx, and the gradients of gain and bias from their parts; each of these may be null. If
// `fixed`, the statistics do not depend on x.
extern "C" __global__ void batch_norm_backward(
    const T* grad, const T* x, const T* statistics, const T* gain, const T* gain_parts,
    const T* bias_parts, T* gain_sums, T* bias_sums, T* grad_x, long long n, long long channels,
    long long parts, int fixed) {
  Column column(n, channels);
  Pair sum = column.of_parts(parts, Pair{T(0), T(0)}, [&](long long part) {
    long long i = part * channels + column.channel;
    return Pair{gain_parts[i], bias_parts[i]};
  });
  if (column.writes()) {
    if (gain_sums) gain_sums[column.channel] = sum.a;
    if (bias_sums) bias_sums[column.channel] = sum.b;
  }
  if (!column.inside()) return;
  T mean = statistics[column.channel], scale = statistics[channels + column.channel];
  T mean_g = fixed ? T(0) : sum.b / T(n), towards_x = fixed ? T(0) : sum.a / T(n) * scale;
  T factor = gain[column.channel] * scale;
  column.over([&](long long, long long i) {
    grad_x[i] = factor * (grad[i] - mean_g - (x[i] - mean) * towards_x);
  });
}

// Move running statistics a fraction of the way towards those of a batch.
extern "C" __global__ void track(
    T* mean, T* variance, const T* statistics, long long channels, double share) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= channels) return;
  mean[i] += T(share) * (statistics[i] - mean[i]);
  variance[i] += T(share) * (statistics[2 * channels + i] - variance[i]);
}

// PReLU

// h = x where x is not below 0, else the slope times x; `step` is 1 for a slope per channel, and 0
// for a single slope.
extern "C" __global__ void prelu(
    const T* x, const T* slope, T* h, long long n, long long channels, long long step) {
  Column column(n, channels);
  T a = column.inside() ? slope[column.channel * step] : T(0);
  column.over([&](long long, long long i) { h[i] = x[i] < T(0) ? a * x[i] : x[i]; });
}

// dJ/dx, and parts of the gradient of the slopes, with a row of `channels` from each range of rows;
// either may be null.
extern "C" __global__ void prelu_backward(
    const T* grad, const T* x, const T* slope, T* grad_x, T* parts, long long n,
    long long channels, long long step) {
  Column column(n, channels);
  T a = column.inside() ? slope[column.channel * step] : T(0), sum = T(0);
  column.over([&](long long, long long i) {
    T g = grad[i], given = x[i];
    sum += g * (given > T(0) ? T(0) : given);
    if (grad_x) grad_x[i] = g * (given > T(0) ? T(1) : a);
  });
  if (!parts) return;
  sum = add_up_column(sum);
  if (column.inside() && threadIdx.y == 0) parts[blockIdx.y * channels + column.channel] = sum;
}
