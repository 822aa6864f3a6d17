// The parts of a captured training step that are outside the layers.
//
// Compile with -DREAL=float or double. A step is captured once and replayed, so all that changes
// from step to step is on the device: the number of the step, and a row of a table.

typedef REAL T;

// Store the results of a step, count it, and load the numbers of the next one. `now` is a row of
// `table`, which has a row for each step plus one; its third number is the weight decay. Launch one
// block.
extern "C" __global__ void finish_step(
    long long* step, long long* now, const long long* table, long long width, const T* cost,
    T* costs, const double* total, double* totals, const T* squares, T* penalties) {
  long long t = *step;
  double half = 0.5 * ((const double*)now)[2];
  __syncthreads();
  if (threadIdx.x == 0) {
    if (cost) costs[t] = *cost;
    if (total) totals[t] = *total;
    if (squares) penalties[t] = half == 0.0 ? T(0) : T(half) * *squares;
    *step = t + 1;
  }
  for (long long i = threadIdx.x; i < width; i += blockDim.x) now[i] = table[(t + 1) * width + i];
}

// Copy a batch's rows to the rows from `*first` on.
extern "C" __global__ void copy_rows(
    const T* from, T* to, const long long* first, long long width, long long size) {
  long long stride = (long long)gridDim.x * blockDim.x;
  to += *first * width;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += stride)
    to[i] = from[i];
}
