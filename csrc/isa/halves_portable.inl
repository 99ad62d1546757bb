// Half a step of bf16 in 12 bits, word by word.
class Halves {
public:
    explicit Halves(const uint8_t* panel) : exponents_(panel) {}
    void take(const uint8_t* step, int64_t half, uint16_t* words) const {
        for (int i = 0; i < 64; i++) {
            const int at = bf16_12_byte(i), code = step[at] >> 4 * half & 15, byte = step[64 + 64 * half + at];
            words[i] = static_cast<uint16_t>((byte & 0x80) << 8 | exponents_[code] << 7 | (byte & 0x7f));
        }
    }

private:
    const uint8_t* exponents_;
};
