// Convolutions by unrolling, and pooling: transfers between images and the windows over them.
//
// Compile with -DREAL=float or double, and -DINDEX="unsigned char" or int for positions in a
// window. Images are (n, h, w, c). If several windows add to an entry, one thread sums them in a
// fixed order, so that results are reproducible.

#include "common.cuh"

typedef REAL T;

struct Window {  // the Python code uses the same layout
  long long h, w;                // of the image
  long long out_h, out_w;        // of the output
  long long size_h, size_w;      // of the window
  long long down, across;        // its steps
  long long gap_h, gap_w;        // from entry to entry
  long long top, left;           // the padding
  long long count;
};

// A thread's first row and first position in a row, and its steps from one to the next. The grid's
// x and the block's y count rows, the grid's y and the block's x positions.
struct Place {
  long long row, rows, lane, lanes;
  __device__ Place()
      : row((long long)blockIdx.x * blockDim.y + threadIdx.y),
        rows((long long)gridDim.x * blockDim.y),
        lane((long long)blockIdx.y * blockDim.x + threadIdx.x),
        lanes((long long)gridDim.y * blockDim.x) {}
};

// The output pixel whose window has the input pixel p at entry i; -1 if there is none.
__device__ long long met(
    long long p, long long i, long long step, long long gap, long long before, long long size) {
  long long from = p + before - i * gap;
  return from >= 0 && from % step == 0 && from / step < size ? from / step : -1;
}

// columns[row] = the channels skipped..skipped+own of all pixels in the window of the row-th output
// pixel.
extern "C" __global__ void unroll(
    const __grid_constant__ Window window, const T* x, T* columns, long long n,
    long long channels, long long skipped, long long own) {
  Place place;
  int size_w = (int)window.size_w, width = (int)own, entries = (int)window.size_h * size_w * width;
  for (long long row = place.row; row < n; row += place.rows) {
    long long line = row / window.out_w;
    long long u = (row - line * window.out_w) * window.across - window.left, image = line / window.out_h;
    long long v = (line - image * window.out_h) * window.down - window.top;
    for (int p = (int)place.lane; p < entries; p += (int)place.lanes) {
      int tap = p / width, c = p - tap * width, i = tap / size_w, j = tap - i * size_w;
      long long y = v + i * window.gap_h, z = u + j * window.gap_w;
      bool inside = y >= 0 && y < window.h && z >= 0 && z < window.w;
      long long pixel = (image * window.h + y) * window.w + z;
      columns[row * entries + p] = inside ? x[pixel * channels + skipped + c] : T(0);
    }
  }
}

// x = the sum of all entries of `columns` that `unroll` copies from x, for n pixels.
extern "C" __global__ void fold(
    const __grid_constant__ Window window, const T* columns, T* x, long long n, long long channels,
    long long skipped, long long own) {
  Place place;
  long long taps = window.size_h * window.size_w;
  for (long long row = place.row; row < n; row += place.rows) {
    long long line = row / window.w, z = row - line * window.w;
    long long image = line / window.h, y = line - image * window.h;
    for (long long c = place.lane; c < own; c += place.lanes) {
      T sum = T(0);
      for (long long i = 0; i < window.size_h; ++i) {
        long long v = met(y, i, window.down, window.gap_h, window.top, window.out_h);
        if (v < 0) continue;
        for (long long j = 0; j < window.size_w; ++j) {
          long long u = met(z, j, window.across, window.gap_w, window.left, window.out_w);
          if (u < 0) continue;
          long long q = (image * window.out_h + v) * window.out_w + u;
          sum += columns[(q * taps + i * window.size_w + j) * own + c];
        }
      }
      x[row * channels + skipped + c] = sum;
    }
  }
}

// y = the largest entry of each window, `where` = its position, for n pixels. NaN is the largest.
extern "C" __global__ void max_pool(
    const __grid_constant__ Window window, const T* x, T* y, INDEX* where, long long n,
    long long channels) {
  Place place;
  for (long long row = place.row; row < n; row += place.rows) {
    long long line = row / window.out_w, u = (row - line * window.out_w) * window.across - window.left;
    long long image = line / window.out_h;
    long long v = (line - image * window.out_h) * window.down - window.top;
    for (long long c = place.lane; c < channels; c += place.lanes) {
      T best = T(__longlong_as_double(0xfff0000000000000LL));  // minus infinity
      long long number = 0;
      for (long long i = 0; i < window.size_h; ++i) {
        if (v + i < 0 || v + i >= window.h) continue;
        for (long long j = 0; j < window.size_w; ++j) {
          if (u + j < 0 || u + j >= window.w) continue;
          T here = x[((image * window.h + v + i) * window.w + u + j) * channels + c];
          if (!(here <= best) && best == best) {
            best = here;
            number = i * window.size_w + j;
          }
        }
      }
      y[row * channels + c] = best;
      where[row * channels + c] = (INDEX)number;
    }
  }
}

// x = the sum of the gradients of all windows in which this entry is the largest, for n pixels.
extern "C" __global__ void max_pool_backward(
    const __grid_constant__ Window window, const T* grad, const INDEX* where, T* x, long long n,
    long long channels) {
  Place place;
  for (long long row = place.row; row < n; row += place.rows) {
    long long line = row / window.w, z = row - line * window.w;
    long long image = line / window.h, y = line - image * window.h;
    for (long long c = place.lane; c < channels; c += place.lanes) {
      T sum = T(0);
      for (long long i = 0; i < window.size_h; ++i) {
        long long v = met(y, i, window.down, 1, window.top, window.out_h);
        if (v < 0) continue;
        for (long long j = 0; j < window.size_w; ++j) {
          long long u = met(z, j, window.across, 1, window.left, window.out_w);
          if (u < 0) continue;
          long long q = ((image * window.out_h + v) * window.out_w + u) * channels + c;
          if (where[q] == i * window.size_w + j) sum += grad[q];
        }
      }
      x[row * channels + c] = sum;
    }
  }
}

// The number of pixels that a window counts which begins at pixel (v, u) of the image.
__device__ T counted(const Window& window, long long v, long long u, int count_padding) {
  if (count_padding) return T(window.size_h * window.size_w);
  long long top = v < 0 ? 0 : v, left = u < 0 ? 0 : u;
  long long bottom = v + window.size_h, right = u + window.size_w;
  if (bottom > window.h) bottom = window.h;
  if (right > window.w) right = window.w;
  return T((bottom - top) * (right - left));
}

// y = the mean of each window, for n pixels.
extern "C" __global__ void average_pool(
    const __grid_constant__ Window window, const T* x, T* y, long long n, long long channels,
    int count_padding) {
  Place place;
  for (long long row = place.row; row < n; row += place.rows) {
    long long line = row / window.out_w, u = (row - line * window.out_w) * window.across - window.left;
    long long image = line / window.out_h;
    long long v = (line - image * window.out_h) * window.down - window.top;
    for (long long c = place.lane; c < channels; c += place.lanes) {
      T sum = T(0);
      for (long long i = 0; i < window.size_h; ++i) {
        if (v + i < 0 || v + i >= window.h) continue;
        for (long long j = 0; j < window.size_w; ++j)
          if (u + j >= 0 && u + j < window.w)
            sum += x[((image * window.h + v + i) * window.w + u + j) * channels + c];
      }
      y[row * channels + c] = sum / counted(window, v, u, count_padding);
    }
  }
}

// x = the sum of equal shares of the gradients of all windows with this pixel, for n pixels.
extern "C" __global__ void average_pool_backward(
    const __grid_constant__ Window window, const T* grad, T* x, long long n, long long channels,
    int count_padding) {
  Place place;
  for (long long row = place.row; row < n; row += place.rows) {
    long long line = row / window.w, z = row - line * window.w;
    long long image = line / window.h, y = line - image * window.h;
    for (long long c = place.lane; c < channels; c += place.lanes) {
      T sum = T(0);
      for (long long i = 0; i < window.size_h; ++i) {
        long long v = met(y, i, window.down, 1, window.top, window.out_h);
        if (v < 0) continue;
        for (long long j = 0; j < window.size_w; ++j) {
          long long u = met(z, j, window.across, 1, window.left, window.out_w);
          if (u < 0) continue;
          T n_pixels = counted(
              window, v * window.down - window.top, u * window.across - window.left, count_padding);
          sum += grad[((image * window.out_h + v) * window.out_w + u) * channels + c] / n_pixels;
        }
      }
      x[row * channels + c] = sum;
    }
  }
}
