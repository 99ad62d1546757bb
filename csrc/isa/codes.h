// Meaning of the stored codes, shared by packing and by the plain tiles. Codes are unsigned; a weight is
// (code - zero) * scale for integers, table[code] * scale for 4- and 8-bit floats.
#pragma once
#include <cstdint>

namespace {

constexpr int kInt8Zero = 128, kInt4Zero = 8;
// e2m1 times 2, so that products stay integral; kFp4Zero makes them unsigned. The scale is halved in exchange.
constexpr int kFp4Zero = 12;
constexpr int8_t kFp4Twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline float power_of_two(int exponent) {  // for [-126, 127]
    const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
}
// A stored e8m0 byte; 0 stands for 2^-127 (a denormal float), as the format has it.
inline float e8m0_value(uint8_t byte) { return byte ? power_of_two(byte - 127) : power_of_two(-126) * 0.5f; }

inline float fp8_value(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const float magnitude = exponent ? static_cast<float>(8 + mantissa) * power_of_two(exponent - 10)
                                     : static_cast<float>(mantissa) * power_of_two(-9);
    return code & 0x80 ? -magnitude : magnitude;
}

// Byte of a 64-byte line (16 outputs) that holds output c (0..15) and input k of the step.
constexpr int int8_byte(int c, int k) { return c * 4 + k; }
constexpr int int4_byte(int c, int k) { return c * 4 + k % 4; }  // low nibble for k < 4
constexpr int fp8_byte(int c, int k) { return c / 4 * 16 + k / 2 * 8 + c % 4 * 2 + k % 2; }

}  // namespace
