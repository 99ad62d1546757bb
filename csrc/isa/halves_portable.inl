// Half a step of bf16 in 12 bits, word by word.
inline void expand_half(const uint8_t* step, int64_t half, const uint8_t* exponents, uint16_t* words) {
    for (int i = 0; i < 64; i++) {
        const int at = bf16_12_byte(i), code = step[at] >> 4 * half & 15, byte = step[64 + 64 * half + at];
        words[i] = static_cast<uint16_t>((byte & 0x80) << 8 | exponents[code] << 7 | (byte & 0x7f));
    }
}
