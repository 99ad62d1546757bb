// AMX's tile instructions behind five functions, so that the kernels over them (tiles_amx.inl) are written once: the
// instructions themselves, and plain C++ of the same meaning, with which every line of those kernels runs on any processor
// that has the rest of the ISA.
//
// Eight tiles of up to 16 rows of 64 bytes. Tile t of the configuration has rows[t] rows of bytes[t] bytes.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AMX_TILE__)
#include <immintrin.h>
#endif

namespace {

constexpr int kTileRows = 16, kTileBytes = 64;

struct alignas(64) TileShapes {  // the 64 bytes that ldtilecfg reads, palette 1
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "a tile configuration has 64 bytes");

#if defined(__AMX_TILE__)
// In assembly because the compiler's intrinsics take a tile's number as text, which a template's parameter is not.
struct HardwareTiles {
    static void configure(const TileShapes& shapes) { _tile_loadconfig(&shapes); }
    static void release() { _tile_release(); }
    template <int T> static void clear() { asm volatile("tilezero %%tmm%c0" : : "i"(T)); }
    template <int T> static void load(const void* from, int64_t stride) {
        asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(from), "r"(stride) : "memory");
    }
    template <int T> static void store(void* to, int64_t stride) {
        asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(to), "r"(stride) : "memory");
    }
    template <int C, int A, int B> static void dot_bf16() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
    template <int C, int A, int B> static void dot_s8_u8() {
        asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
};
#endif

// A sum as the tile unit rounds it: to nearest even, numbers below the smallest normal one taken and left as zero.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

struct EmulatedTiles {
    struct State {
        TileShapes shapes;
        uint8_t data[8][kTileRows][kTileBytes];
    };
    static State& state() {
        static thread_local State tiles;
        return tiles;
    }
    static void configure(const TileShapes& shapes) {
        state() = {shapes, {}};
    }
    static void release() { configure(TileShapes{}); }
    template <int T> static void clear() { memset(state().data[T], 0, sizeof state().data[T]); }
    template <int T> static void load(const void* from, int64_t stride) {
        clear<T>();
        for (int r = 0; r < state().shapes.rows[T]; r++)
            memcpy(state().data[T][r], static_cast<const uint8_t*>(from) + r * stride, state().shapes.bytes[T]);
    }
    template <int T> static void store(void* to, int64_t stride) {
        for (int r = 0; r < state().shapes.rows[T]; r++)
            memcpy(static_cast<uint8_t*>(to) + r * stride, state().data[T][r], state().shapes.bytes[T]);
    }

    template <class Number> static Number at(int tile, int row, int index) {
        Number value;
        memcpy(&value, state().data[tile][row] + index * sizeof(Number), sizeof value);
        return value;
    }
    static float bf16_at(int tile, int row, int index) {
        const uint32_t bits = static_cast<uint32_t>(at<uint16_t>(tile, row, index)) << 16;
        float value;
        memcpy(&value, &bits, 4);
        return flushed(value);
    }
    // use(row, column, number of 4-byte groups along the inputs) -> what is put there, for every element of C.
    template <int C, int A, class Element, class Use> static void each(Use&& use) {
        const TileShapes& shapes = state().shapes;
        for (int m = 0; m < shapes.rows[C]; m++)
            for (int n = 0; n < shapes.bytes[C] / 4; n++) {
                const Element sum = use(m, n, shapes.bytes[A] / 4);
                memcpy(state().data[C][m] + 4 * n, &sum, 4);
            }
    }
    // Products of even inputs and of odd ones are summed apart over the whole tile, then together, then into C.
    template <int C, int A, int B> static void dot_bf16() {
        each<C, A, float>([](int m, int n, int groups) {
            float even = 0, odd = 0;
            for (int k = 0; k < groups; k++) {
                even = flushed(std::fma(bf16_at(A, m, 2 * k), bf16_at(B, k, 2 * n), even));
                odd = flushed(std::fma(bf16_at(A, m, 2 * k + 1), bf16_at(B, k, 2 * n + 1), odd));
            }
            return flushed(flushed(at<float>(C, m, n)) + flushed(even + odd));
        });
    }
    template <int C, int A, int B> static void dot_s8_u8() {
        each<C, A, uint32_t>([](int m, int n, int groups) {
            uint32_t sum = at<uint32_t>(C, m, n);  // wraps, as the tile unit does
            for (int k = 0; k < 4 * groups; k++)
                sum += static_cast<uint32_t>(at<int8_t>(A, m, k) * at<uint8_t>(B, k / 4, 4 * n + k % 4));
            return sum;
        });
    }
};

}  // namespace
