// Panels of bf16 in 12 bits made plain, for the tiles that do not take them apart themselves.
void expand_bf16_12(const uint8_t* panel, int64_t steps, uint16_t* plain) {
    const Halves halves(panel);
    Exceptions exceptions(panel, steps);
    const uint8_t* step = panel + bf16_12_front_bytes;
    for (int64_t half = 0; half < 2 * steps; half++, plain += 64) {
        if (half % 2 == 0) for (int line = 0; line < 3; line++) prefetch(step + 4096 + 64 * line);
        halves.take(step, half % 2, plain);
        if (exceptions.in(half)) {
            exceptions.each([&](int word, uint32_t exponent) {
                plain[word] = static_cast<uint16_t>((plain[word] & 0x807f) | exponent << 7);
            });
        }
        if (half % 2) step += bf16_12_step_bytes;
    }
}
