// The GPU's half of reading a grey PNG: check and undo the row filters, then resize. CUDA C, compiled by NVRTC when a
// decoder is made (module.py), and by g++ in the tests, which run this very source on a CPU.
//
// A call works on B images, described by one table, uint64 [FIELDS, B]; field f of image b is table[f * B + b].
// Every argument of a kernel is 64 bits wide: an address or a number.

typedef unsigned char byte;
typedef unsigned long long u64;
typedef long long i64;

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) byte name[]
#endif

// The order of table.py's Field.
enum {
    STREAM,
    STREAM_BYTES,
    ROWS,
    ROWS_BYTES,
    ADLER,
    HEIGHT,
    WIDTH,
    PIXELS,
    PITCH,
    ROW_FILTER,
    COLUMN_FILTER
};

// Verdicts on an image; nvCOMP's statuses of a stream are positive.
enum { GOOD = 0, WRONG_LENGTH = -1, UNKNOWN_FILTER = -2, WRONG_ADLER = -3 };

#define LANES 32            // rows a warp unfilters side by side, and columns of a tile
#define TILE_PITCH 36       // 9 words, an odd number: 32 lanes that read 32 rows meet 32 banks of shared memory
#define TILE_BYTES (33 * TILE_PITCH)  // 32 rows, and the pixels above them; table.py's TILE_BYTES
#define ALL_LANES 0xffffffffu
#define NO_ADLER 0xffffffffffffffffull
#define WEIGHT_BITS 22      // kernels.py's

// PNG's filters. The choice between the three neighbours is the specification's, ties included. Without branches: rows
// of a warp have different filters.
static __device__ int predicted(int filter, int left, int up, int corner)
{
    const int to_left = abs(up - corner), to_up = abs(left - corner), to_corner = abs(left + up - 2 * corner);
    const int nearest = to_up <= to_corner ? up : corner;
    const int paeth = to_left <= to_up && to_left <= to_corner ? left : nearest;
    const int mean = (left + up) >> 1;
    return filter == 1 ? left : filter == 2 ? up : filter == 3 ? mean : filter == 4 ? paeth : 0;
}

// Undo the row filters of one image a block, in place, and write its verdict.
//
// The inflated rows are byte [H, 1 + W], each behind its filter type; a pixel replaces its filtered byte.
//
// A warp takes a group of 32 rows, lane k the k-th. Lane k trails lane k-1 by one pixel, so at step t it is at column
// t-k and knows its neighbours: up is what lane k-1 made one step ago, corner what that made two steps ago, left what
// itself made one step ago. 32 steps are a tile, a block of bytes that leans to the left by one column a row. It goes
// through shared memory, so that warps read and write runs of 32 bytes of a row, not 32 rows' bytes.
//
// Lane 0 needs the last row of the group above. That row's column t is made at step t+31, so group g may work on tile
// q while the group above works on tile q+2. All warps move in phases, one tile each, with a barrier between: warp w
// begins 2w phases late and takes groups w, w + num_warps, ... one after the other. A round of groups lasts as many
// phases as a group has tiles, or 2 * num_warps where that is more: then the first warp waits for the last.
//
// Adler-32 is summed where the bytes are first read. Over n bytes, s1 = 1 + sum d_i and s2 = n + sum (n-i) d_i. n is
// at most 2 * 2^26 (64 Mi rows of one pixel and one filter type), so s2 < 255 n (n+1) / 2 < 2^62: no modulo until the
// end.
//
// Launch with grid B, whole warps, and TILE_BYTES of dynamic shared memory for each.
//   statuses: int32 [B] and actual: uint64 [B], the inflater's results, or 0 where the rows are known to be whole.
//   verdicts: int32 [B], written. Where one is not GOOD the image's pixels are undefined.
extern "C" __global__ void unfilter(const u64* table, u64 num_images, const int* statuses, const u64* actual,
                                    int* verdicts)
{
    DYNAMIC_SHARED(shared);
    const u64* field = table + blockIdx.x;
    byte* rows = (byte*)field[ROWS * num_images];
    const int height = (int)field[HEIGHT * num_images], width = (int)field[WIDTH * num_images];
    const unsigned num_bytes = (unsigned)field[ROWS_BYTES * num_images];  // at most 2^27
    const unsigned pitch = width + 1;
    const u64 adler = field[ADLER * num_images];

    int refused = statuses ? statuses[blockIdx.x] : 0;
    if (refused == 0 && actual && actual[blockIdx.x] != num_bytes) refused = WRONG_LENGTH;
    if (refused != 0) {  // all threads of the block read the same, so all leave
        if (threadIdx.x == 0) verdicts[blockIdx.x] = refused;
        return;
    }

    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, num_warps = blockDim.x / LANES;
    byte* tile = shared + warp * TILE_BYTES;
    byte* above = tile + LANES * TILE_PITCH;
    const int num_groups = (height + LANES - 1) / LANES;
    const int num_tiles = (width + 2 * LANES - 2) / LANES;  // of width + 31 steps
    const int round = num_tiles > 2 * num_warps ? num_tiles : 2 * num_warps;
    const int num_rounds = (num_groups + num_warps - 1) / num_warps;
    const int num_phases = (num_rounds - 1) * round + 2 * (num_warps - 1) + num_tiles;

    int group = warp, q = -2 * warp;  // q < 0: this warp has not begun
    int filter = 0, left = 0, corner = 0, unknown = 0;
    u64 sum = 0, weighted_sum = 0;
    for (int phase = 0; phase < num_phases; ++phase, ++q) {
        if (q == round) {
            q = 0;
            group += num_warps;
        }
        if (group < num_groups && q >= 0 && q < num_tiles) {
            const int first = group * LANES;
            const int num_rows = height - first < LANES ? height - first : LANES;
            if (q == 0) {
                left = corner = filter = 0;
                if (lane < num_rows) {
                    const unsigned at = (first + lane) * pitch;
                    filter = rows[at];
                    sum += filter;
                    weighted_sum += (u64)(num_bytes - at) * filter;
                    unknown |= filter > 4;
                }
            }
            // Row k of the tile holds the columns from q*32 - k on; what is outside the image counts as 0.
            int column = q * LANES + lane;
            unsigned at = first * pitch + 1 + column;  // may wrap where there is no pixel
#pragma unroll 8
            for (int k = 0; k < LANES; ++k) {
                unsigned value = 0;
                if (k < num_rows && column >= 0 && column < width) value = rows[at];
                tile[k * TILE_PITCH + lane] = (byte)value;
                sum += value;
                weighted_sum += (u64)(num_bytes - at) * value;
                at += pitch - 1;
                --column;
            }
            column = q * LANES + lane;
            above[lane] = first > 0 && column < width ? rows[(first - 1) * pitch + 1 + column] : 0;
            __syncwarp();
            for (int t = 0; t < LANES; ++t) {
                int up = __shfl_up_sync(ALL_LANES, left, 1);
                if (lane == 0) up = above[t];
                byte* pixel = tile + lane * TILE_PITCH + t;
                left = (*pixel + predicted(filter, left, up, corner)) & 255;
                corner = up;
                *pixel = (byte)left;
            }
            __syncwarp();
            at = first * pitch + 1 + column;
#pragma unroll 8
            for (int k = 0; k < LANES; ++k) {
                if (k < num_rows && column >= 0 && column < width) rows[at] = tile[k * TILE_PITCH + lane];
                at += pitch - 1;
                --column;
            }
        }
        __syncthreads();  // this phase's pixels are in global memory for all warps, and its tile may be overwritten
    }

    for (int step = LANES / 2; step > 0; step /= 2) {
        sum += __shfl_down_sync(ALL_LANES, sum, step);
        weighted_sum += __shfl_down_sync(ALL_LANES, weighted_sum, step);
        unknown |= __shfl_down_sync(ALL_LANES, unknown, step);
    }
    u64* totals = (u64*)shared;  // the tiles are no longer needed; 3 numbers a warp
    if (lane == 0) {
        totals[3 * warp] = sum;
        totals[3 * warp + 1] = weighted_sum;
        totals[3 * warp + 2] = unknown;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int other = 1; other < num_warps; ++other) {
            sum += totals[3 * other];
            weighted_sum += totals[3 * other + 1];
            unknown |= (int)totals[3 * other + 2];
        }
        const u64 found = (num_bytes + weighted_sum) % 65521 << 16 | (1 + sum) % 65521;
        int verdict = GOOD;
        if (adler != NO_ADLER && adler != found) verdict = WRONG_ADLER;
        if (unknown) verdict = UNKNOWN_FILTER;
        verdicts[blockIdx.x] = verdict;
    }
}

// One output row a block: weighted sums over rows, then over columns, rounded once at the end, as kernels.py's resize.
//
// The filter of an axis is int32 [2 + taps, size]: each output pixel's first source pixel, their number, their weights
// in units of 2^-22. Each pixel's weights are between 0 and 1 and sum to 1, so the sums over rows stay inside int32.
//
// The sums over rows of `capacity` columns fit into shared memory. A wider image is taken in strips, with the sums done
// anew for every blockDim.x output pixels: right, and slow.
//
// Launch with grid (size, B) and `capacity` int32 of dynamic shared memory.
//   resized: byte [B, size, size], written.
extern "C" __global__ void resize(const u64* table, u64 num_images, u64 size_, byte* resized, u64 capacity_)
{
    DYNAMIC_SHARED(shared);
    int* sums = (int*)shared;
    const u64* field = table + blockIdx.y;
    const byte* pixels = (const byte*)field[PIXELS * num_images];
    const i64 pitch = (i64)field[PITCH * num_images], width = (i64)field[WIDTH * num_images];
    const int* row_filter = (const int*)field[ROW_FILTER * num_images] + blockIdx.x;
    const int* column_filter = (const int*)field[COLUMN_FILTER * num_images];
    const i64 size = (i64)size_, capacity = (i64)capacity_;
    byte* out = resized + ((i64)blockIdx.y * size + blockIdx.x) * size;

    const byte* top = pixels + row_filter[0] * pitch;
    const int num_rows = row_filter[size];
    for (i64 base = 0; base < size; base += blockDim.x) {
        const i64 j = base + threadIdx.x;
        int begin = 0, end = 0;
        if (j < size) {
            begin = column_filter[j];
            end = begin + column_filter[size + j];
        }
        i64 total = 1ll << (2 * WEIGHT_BITS - 1);
        for (i64 strip = 0; strip < width; strip += capacity) {
            const int strip_width = width - strip < capacity ? (int)(width - strip) : (int)capacity;
            if (base == 0 || capacity < width) {
                __syncthreads();  // the strip before has been read by all
                for (int x = threadIdx.x; x < strip_width; x += blockDim.x) {
                    int sum = 0;
                    for (int tap = 0; tap < num_rows; ++tap)
                        sum += row_filter[(2 + tap) * size] * top[tap * pitch + strip + x];
                    sums[x] = sum;
                }
                __syncthreads();
            }
            const int from = begin > strip ? begin : (int)strip;
            const int to = end < strip + strip_width ? end : (int)strip + strip_width;
            for (int x = from; x < to; ++x)
                total += (i64)column_filter[(2 + x - begin) * size + j] * sums[x - (int)strip];
        }
        if (j < size) out[j] = (byte)(total >> (2 * WEIGHT_BITS));
    }
}
