// Pictures: 8-bit binary PPM (colour) and PGM (grey), as Netpbm defines them and as `convert photo.jpg photo.ppm` writes them.
#pragma once

#include <cctype>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// All bytes of a file. Throws std::runtime_error if it cannot be read.
inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream content;
    if (!file || !(content << file.rdbuf())) {
        throw std::runtime_error("cannot read " + path);
    }
    return content.str();
}

// Rows of pixels from the top, channels of a pixel together: (height, width, channels), in R, G, B order.
struct Picture {
    int height = 0, width = 0, channels = 0;
    std::vector<std::uint8_t> pixels;

    const std::uint8_t* at(int row, int column) const {
        return pixels.data() + (static_cast<std::size_t>(row) * width + column) * channels;
    }
};

// Throws std::runtime_error if the file is not a binary PPM or PGM with 255 levels.
inline Picture read_picture(const std::string& path) {
    const std::string bytes = read_file(path);
    std::size_t at = 2;
    const auto next_number = [&] {
        while (at < bytes.size() && (std::isspace(static_cast<unsigned char>(bytes[at])) || bytes[at] == '#')) {
            at = bytes[at] == '#' ? bytes.find('\n', at) : at + 1;
        }
        const std::size_t start = at;
        int number = 0;
        while (at < bytes.size() && at - start < 6 && std::isdigit(static_cast<unsigned char>(bytes[at]))) {
            number = 10 * number + (bytes[at++] - '0');
        }
        return number;
    };
    const std::string kind = bytes.substr(0, 2);
    Picture found;
    found.channels = kind == "P6" ? 3 : kind == "P5" ? 1 : 0;
    found.width = next_number(), found.height = next_number();
    const int levels = next_number();
    const std::size_t size = static_cast<std::size_t>(found.width) * found.height * found.channels;
    if (size == 0 || levels != 255 || bytes.size() < at + 1 + size) {
        throw std::runtime_error("expected a binary PPM or PGM with 255 levels, got " + path +
                                 "; make one with: convert photo.jpg photo.ppm");
    }
    found.pixels.assign(bytes.begin() + static_cast<std::ptrdiff_t>(at + 1),
                        bytes.begin() + static_cast<std::ptrdiff_t>(at + 1 + size));
    return found;
}

// The picture with 1 or 3 channels: grey of colour by ITU-R BT.601, in Pillow's fixed point.
inline Picture with_channels(const Picture& picture, int channels) {
    if (picture.channels == channels) {
        return picture;
    }
    Picture made{picture.height, picture.width, channels, {}};
    for (std::size_t at = 0; at < picture.pixels.size(); at += picture.channels) {
        const std::uint8_t* pixel = picture.pixels.data() + at;
        if (channels == 1) {
            made.pixels.push_back((pixel[0] * 19595u + pixel[1] * 38470u + pixel[2] * 7471u + 0x8000u) >> 16);
        } else {
            made.pixels.insert(made.pixels.end(), channels, pixel[0]);
        }
    }
    return made;
}
