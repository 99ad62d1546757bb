// A panel of bf16 in 12 bits a weight, exactly. The exponents of weights crowd: of the 256 there could be, sixteen cover all but
// one weight in thousands. A panel keeps its own sixteen, and of each weight a nibble that says which, and a byte of sign and
// mantissa; the few other exponents lie behind as exceptions. Trained and random weights fit; what does not is packed as bf16.
//
//     front       64 bytes: the sixteen exponents
//     steps       192 bytes each, 64 outputs by 2 inputs: a line of nibbles, a line of bytes for the first half of the weights,
//                 whose nibbles are the low ones, and a line for the second half
//     exceptions  32 bits each, in order: the weight's place in the panel, its exponent in the lowest byte; then kNoException
//
// Half a step is 64 weights, that is two lines of bf16 (a line being 16 outputs by 2 inputs). Bytes are in such an order that
// interleaving those of each 16 with as many high bytes gives eight words of the first line, then eight of the second.
#pragma once
#include <cstdint>
#include <cstring>

namespace rp {

constexpr int64_t bf16_12_front_bytes = 64, bf16_12_step_bytes = 192;
constexpr int kExponents = 16;
constexpr uint32_t kNoException = UINT32_MAX;
constexpr int64_t bf16_12_most_steps = 1 << 16;  // places have 24 bits, a step 128 places

// Room for one weight in 256, and some for small panels.
static constexpr int64_t bf16_12_most_exceptions(int64_t steps) { return steps / 2 + 15; }
static constexpr int64_t bf16_12_exception_bytes(int64_t steps) { return (bf16_12_most_exceptions(steps) * 4 + 4 + 63) / 64 * 64; }

static inline const uint8_t* bf16_12_exceptions(const uint8_t* panel, int64_t steps) {
    return panel + bf16_12_front_bytes + steps * bf16_12_step_bytes;
}
// Byte (and nibble) of word `i` of two lines of bf16.
static constexpr int bf16_12_byte(int i) { return i % 32 / 8 * 16 + i / 32 * 8 + i % 8; }

namespace {  // of each unit its own: units compiled for an ISA must not lend their instructions to the others through the linker

// The exceptions of a panel, in turn.
class Exceptions {
public:
    Exceptions(const uint8_t* panel, int64_t steps) : at_(bf16_12_exceptions(panel, steps)) {
        __builtin_prefetch(at_ + 64);
        look();
    }
    // Half steps are counted through the panel.
    bool in(int64_t half) const { return half == half_; }
    // The step that has the next one, or `end`.
    int64_t next_step(int64_t end) const { return half_ / 2 < end ? half_ / 2 : end; }
    // use(word, exponent) for those of the half step that is next: which of its 64 words.
    template <class Use> void each(Use&& use) {
        const int64_t half = half_;
        do {
            use(static_cast<int>(entry_ >> 8 & 63), entry_ & 255);
            at_ += 4;
            look();
        } while (half_ == half);
        __builtin_prefetch(at_ + 64);
    }
    // Past those of the half step that is next.
    void skip() {
        const int64_t half = half_;
        do { at_ += 4; look(); } while (half_ == half);
    }

private:
    void look() {
        memcpy(&entry_, at_, 4);
        half_ = entry_ >> 14;
    }

    const uint8_t* at_;
    uint32_t entry_;
    int64_t half_;
};

}  // namespace

}  // namespace rp
