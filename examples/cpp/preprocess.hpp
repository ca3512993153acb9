// A bundle's preprocessing, as its manifest says it: resize, crop the centre, scale to 0..1, normalise. The same bits as `runtimes/preprocess.py`.
//
// Resizing is Pillow's: a filter that widens as a picture shrinks, columns first and then rows, each rounded to 8 bits, with weights of 22 bits
// (Pillow's src/libImaging/Resample.c says how it rounds).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "json.hpp"
#include "picture.hpp"

struct Preprocess {
    int resize_height = 0, resize_width = 0;  // both 0: the size is left alone
    int shorter_side = 0;                     // in place of both
    int height = 0, width = 0;                // of the crop, and so of the model's input
    std::string interpolation;
    bool antialias = true;
    std::vector<float> mean, std;  // R, G, B, for pixels scaled to 0..1
    bool bgr = false;

    int channels() const { return static_cast<int>(mean.size()); }

    // Throws std::runtime_error where the manifest asks for what this program does not do.
    static Preprocess from_manifest(const Json& json) {
        Preprocess made;
        const Json& resize = json["resize"];
        if (resize.kind == Json::Kind::array) {
            made.resize_height = static_cast<int>(resize.array.at(0).as_number());
            made.resize_width = static_cast<int>(resize.array.at(1).as_number());
        } else if (!resize.is_null()) {
            made.shorter_side = static_cast<int>(resize.as_number());
        }
        made.height = static_cast<int>(json["crop"].as_array().at(0).as_number());
        made.width = static_cast<int>(json["crop"].as_array().at(1).as_number());
        made.interpolation = json["interpolation"].as_text();
        made.antialias = json["antialias"].boolean;
        for (const Json& one : json["mean"].as_array()) {
            made.mean.push_back(static_cast<float>(one.as_number()));
        }
        for (const Json& one : json["std"].as_array()) {
            made.std.push_back(static_cast<float>(one.as_number()));
        }
        made.bgr = json["channels_order"].as_text() == "bgr";
        if (!made.resize_is_none() && made.interpolation != "nearest" && !made.antialias) {
            throw std::runtime_error("this example resizes with antialias alone, the bundle asks for none");
        }
        if (made.channels() != 1 && made.channels() != 3) {
            throw std::runtime_error("expected a model of grey or colour pictures, got one of " +
                                     std::to_string(made.channels()) + " channels");
        }
        return made;
    }

    bool resize_is_none() const { return shorter_side == 0 && resize_height == 0; }
};

namespace preprocess_detail {

constexpr int kWeightBits = 32 - 8 - 2;

struct Filter {
    double support;
    double (*weight)(double);
};

inline double triangle(double x) { return std::max(0.0, 1.0 - std::fabs(x)); }

inline double cubic(double x) {  // Keys, with a = -0.5
    x = std::fabs(x);
    constexpr double a = -0.5;
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    }
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

inline double sinc(double x) {
    constexpr double pi = 3.14159265358979323846;
    return x == 0.0 ? 1.0 : std::sin(x * pi) / (x * pi);
}

inline double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

inline Filter filter_of(const std::string& interpolation) {
    if (interpolation == "bilinear") {
        return {1.0, triangle};
    }
    if (interpolation == "bicubic") {
        return {2.0, cubic};
    }
    if (interpolation == "lanczos") {
        return {3.0, lanczos};
    }
    throw std::runtime_error("expected nearest, bilinear, bicubic or lanczos, got " + interpolation);
}

// Which old pixels make a new one, from `first` on, and how much of each.
struct Taps {
    int first;
    std::vector<std::int32_t> weights;
};

inline std::vector<Taps> taps_of(int old_size, int new_size, const Filter& filter) {
    const double scale = static_cast<double>(old_size) / new_size, stretch = std::max(scale, 1.0);
    const double support = filter.support * stretch, shrink = 1.0 / stretch;
    std::vector<Taps> all;
    for (int place = 0; place < new_size; ++place) {
        const double center = (place + 0.5) * scale;
        const int first = std::max(static_cast<int>(center - support + 0.5), 0);
        const int count = std::min(static_cast<int>(center + support + 0.5), old_size) - first;
        std::vector<double> parts;
        double sum = 0;
        for (int i = 0; i < count; ++i) {
            parts.push_back(filter.weight((i + first - center + 0.5) * shrink));
            sum += parts.back();
        }
        Taps taps{first, {}};
        for (double part : parts) {
            part = sum != 0.0 ? part / sum : part;
            taps.weights.push_back(static_cast<std::int32_t>((part < 0 ? -0.5 : 0.5) + part * (1 << kWeightBits)));
        }
        all.push_back(std::move(taps));
    }
    return all;
}

inline std::uint8_t rounded(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
}

// One side resized: the columns' number (`across`), or the rows'.
inline Picture resize_side(const Picture& picture, int size, const Filter& filter, bool across) {
    if (size == (across ? picture.width : picture.height)) {
        return picture;
    }
    const std::vector<Taps> all = taps_of(across ? picture.width : picture.height, size, filter);
    Picture made{across ? picture.height : size, across ? size : picture.width, picture.channels, {}};
    made.pixels.reserve(static_cast<std::size_t>(made.height) * made.width * made.channels);
    for (int row = 0; row < made.height; ++row) {
        for (int column = 0; column < made.width; ++column) {
            const Taps& taps = all[across ? column : row];
            for (int channel = 0; channel < made.channels; ++channel) {
                std::int32_t sum = 1 << (kWeightBits - 1);
                for (int i = 0; i < static_cast<int>(taps.weights.size()); ++i) {
                    const std::uint8_t* pixel =
                        across ? picture.at(row, taps.first + i) : picture.at(taps.first + i, column);
                    sum += pixel[channel] * taps.weights[i];
                }
                made.pixels.push_back(rounded(sum));
            }
        }
    }
    return made;
}

// For each new place the old one that it shows; sums up as Pillow does, so that both round alike.
inline std::vector<int> nearest_places(int old_size, int new_size) {
    const double step = static_cast<double>(old_size) / new_size;
    std::vector<int> places;
    for (double at = step * 0.5; static_cast<int>(places.size()) < new_size; at += step) {
        places.push_back(std::min(static_cast<int>(at), old_size - 1));
    }
    return places;
}

inline Picture resize_nearest(const Picture& picture, int height, int width) {
    const std::vector<int> rows = nearest_places(picture.height, height);
    const std::vector<int> columns = nearest_places(picture.width, width);
    Picture made{height, width, picture.channels, {}};
    for (const int row : rows) {
        for (const int column : columns) {
            const std::uint8_t* pixel = picture.at(row, column);
            made.pixels.insert(made.pixels.end(), pixel, pixel + picture.channels);
        }
    }
    return made;
}

inline Picture resize(const Picture& picture, int height, int width, const std::string& interpolation) {
    if (interpolation == "nearest") {
        return resize_nearest(picture, height, width);
    }
    const Filter filter = filter_of(interpolation);
    return resize_side(resize_side(picture, width, filter, true), height, filter, false);
}

// Where a centred crop begins, half rounded to even as torchvision does; negative beyond the edge.
inline int offset(int size, int crop) {
    return size >= crop ? static_cast<int>(std::nearbyint((size - crop) / 2.0)) : -((crop - size) / 2);
}

inline Picture crop_centre(const Picture& picture, int height, int width) {
    const int top = offset(picture.height, height), left = offset(picture.width, width);
    Picture made{height, width, picture.channels, {}};
    made.pixels.assign(static_cast<std::size_t>(height) * width * picture.channels, 0);  // black beyond the edges
    for (int row = std::max(0, -top); row < height && row + top < picture.height; ++row) {
        for (int column = std::max(0, -left); column < width && column + left < picture.width; ++column) {
            const std::uint8_t* pixel = picture.at(row + top, column + left);
            std::copy(pixel, pixel + picture.channels,
                      made.pixels.begin() + (static_cast<std::ptrdiff_t>(row) * width + column) * picture.channels);
        }
    }
    return made;
}

}  // namespace preprocess_detail

// Resize and crop: uint8 (height, width, channels), what a model with its normalisation inside takes.
inline Picture pixels_of(const Picture& given, const Preprocess& steps) {
    using namespace preprocess_detail;
    const Picture picture = with_channels(given, steps.channels());
    if (steps.resize_is_none()) {
        return crop_centre(picture, steps.height, steps.width);
    }
    int height = steps.resize_height, width = steps.resize_width;
    if (steps.shorter_side > 0) {
        const int shorter = std::min(picture.height, picture.width), longer = std::max(picture.height, picture.width);
        const int scaled = static_cast<int>(static_cast<std::int64_t>(steps.shorter_side) * longer / shorter);
        height = picture.width <= picture.height ? scaled : steps.shorter_side;
        width = picture.width <= picture.height ? steps.shorter_side : scaled;
    }
    return crop_centre(resize(picture, height, width, steps.interpolation), steps.height, steps.width);
}

// Scale and normalise: float32 (channels, height, width), in the model's order of channels.
inline std::vector<float> normalised(const Picture& picture, const Preprocess& steps) {
    const int channels = picture.channels;
    const std::size_t area = static_cast<std::size_t>(picture.height) * picture.width;
    std::vector<float> planes(area * channels);
    for (int plane = 0; plane < channels; ++plane) {
        const int channel = steps.bgr ? channels - 1 - plane : plane;
        for (std::size_t i = 0; i < area; ++i) {
            const float scaled = static_cast<float>(picture.pixels[i * channels + channel]) / 255.0f;
            planes[plane * area + i] = (scaled - steps.mean[channel]) / steps.std[channel];
        }
    }
    return planes;
}
