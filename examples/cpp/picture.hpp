// A picture in memory, and the reader of binary PPM and PGM files, which every tool writes:
//   ffmpeg -i photo.jpg photo.ppm      djpeg photo.jpg > photo.ppm      magick photo.jpg photo.ppm
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace resnet {

// Rows from the top, pixels from the left, channels together: 1 (grey) or 3 (red, green, blue).
struct Picture {
    int height = 0, width = 0, channels = 0;
    std::vector<uint8_t> pixels;

    Picture() = default;
    Picture(int rows, int columns, int parts)
        : height(rows), width(columns), channels(parts),
          pixels(static_cast<size_t>(rows) * static_cast<size_t>(columns) * static_cast<size_t>(parts)) {}

    uint8_t& at(int row, int column, int channel) { return pixels[place(row, column, channel)]; }
    uint8_t at(int row, int column, int channel) const { return pixels[place(row, column, channel)]; }

private:
    size_t place(int row, int column, int channel) const {
        return (static_cast<size_t>(row) * static_cast<size_t>(width) + static_cast<size_t>(column)) *
                   static_cast<size_t>(channels) +
               static_cast<size_t>(channel);
    }
};

inline std::string read_file(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error("cannot read " + path + "; give a file that is there");
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline Picture read_picture(std::string const& path) {
    std::string const data = read_file(path);
    auto const refused = [&path](std::string const& what) {
        return std::runtime_error("cannot read the picture " + path + ": " + what +
                                  "; give a binary PPM or PGM of 8 bits (P6 or P5)");
    };
    size_t place = 2;
    auto const next_number = [&]() {
        for (;;) {
            while (place < data.size() && std::string(" \t\r\n").find(data[place]) != std::string::npos) {
                ++place;
            }
            if (place >= data.size() || data[place] != '#') {
                break;
            }
            while (place < data.size() && data[place] != '\n') {
                ++place;
            }
        }
        int value = 0, digits = 0;
        for (; place < data.size() && data[place] >= '0' && data[place] <= '9' && digits < 7; ++place, ++digits) {
            value = 10 * value + (data[place] - '0');
        }
        if (digits == 0) {
            throw refused("its header is malformed");
        }
        return value;
    };
    if (data.compare(0, 2, "P6") != 0 && data.compare(0, 2, "P5") != 0) {
        throw refused("it does not begin with P6 or P5");
    }
    int const width = next_number(), height = next_number(), largest = next_number();
    if (width < 1 || height < 1 || largest != 255) {
        throw refused("it is empty, or not of 8 bits");
    }
    if (static_cast<uint64_t>(width) * static_cast<uint64_t>(height) > data.size()) {
        throw refused("it ends too early");
    }
    Picture picture(height, width, data[1] == '6' ? 3 : 1);
    if (data.size() - place - 1 < picture.pixels.size()) {
        throw refused("it ends too early");
    }
    for (size_t i = 0; i < picture.pixels.size(); ++i) {
        picture.pixels[i] = static_cast<uint8_t>(data[place + 1 + i]);
    }
    return picture;
}

}  // namespace resnet
