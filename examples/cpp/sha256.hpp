// SHA-256 (FIPS 180-4) of bytes, in hex.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace resnet {

// Of each round: the fractional part of a prime's cube root.
inline std::array<uint32_t, 64> const& sha256_rounds() {
    static std::array<uint32_t, 64> const constants = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    return constants;
}

inline std::string sha256(std::string const& data) {
    std::array<uint32_t, 8> state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    auto const turn = [](uint32_t value, int bits) { return value >> bits | value << (32 - bits); };
    auto const block = [&](unsigned char const* bytes) {
        std::array<uint32_t, 64> words{};
        for (int i = 0; i < 16; ++i) {
            words[i] = uint32_t{bytes[4 * i]} << 24 | uint32_t{bytes[4 * i + 1]} << 16 | uint32_t{bytes[4 * i + 2]} << 8 |
                       uint32_t{bytes[4 * i + 3]};
        }
        for (int i = 16; i < 64; ++i) {
            uint32_t const low = turn(words[i - 15], 7) ^ turn(words[i - 15], 18) ^ words[i - 15] >> 3;
            uint32_t const high = turn(words[i - 2], 17) ^ turn(words[i - 2], 19) ^ words[i - 2] >> 10;
            words[i] = words[i - 16] + low + words[i - 7] + high;
        }
        auto [a, b, c, d, e, f, g, h] = state;
        for (int i = 0; i < 64; ++i) {
            uint32_t const first = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) +
                                   sha256_rounds()[i] + words[i];
            uint32_t const second = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
        }
        std::array<uint32_t, 8> const added = {a, b, c, d, e, f, g, h};
        for (int i = 0; i < 8; ++i) {
            state[i] += added[i];
        }
    };
    auto const* bytes = reinterpret_cast<unsigned char const*>(data.data());
    size_t const whole = data.size() / 64 * 64;
    for (size_t i = 0; i < whole; i += 64) {
        block(bytes + i);
    }
    std::string rest = data.substr(whole) + '\x80';
    rest.append((120 - rest.size() % 64) % 64, '\0');
    for (int i = 7; i >= 0; --i) {
        rest += static_cast<char>(uint64_t{data.size()} * 8 >> 8 * i);
    }
    for (size_t i = 0; i < rest.size(); i += 64) {
        block(reinterpret_cast<unsigned char const*>(rest.data()) + i);
    }
    std::string hex;
    for (uint32_t const word : state) {
        for (int shift = 28; shift >= 0; shift -= 4) {
            hex += "0123456789abcdef"[word >> shift & 15];
        }
    }
    return hex;
}

}  // namespace resnet
