// A bundle's preprocessing, bit for bit as runtimes/preprocess.py does it with Pillow: resize, cut the centre, normalise.
//
// Pillow resizes one axis after the other; each new pixel is a sum of old ones times coefficients of 22 bits, rounded
// to whole levels (src/libImaging/Resample.c). Columns come first. Compile with -ffp-contract=off: a fused multiply and
// add would round a coefficient otherwise.
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

namespace resnet {

// The manifest's `preprocess`.
struct Preprocess {
    int shorter_side = 0;                      // resize to this; 0 where resize_height and resize_width say, or nothing
    int resize_height = 0, resize_width = 0;   // 0: the size is left alone
    int height = 0, width = 0;                 // of the crop
    std::string interpolation;                 // nearest, bilinear, bicubic or lanczos
    std::vector<float> mean, std;              // in R, G, B order
    bool bgr = false;                          // the model takes blue first

    int channels() const { return static_cast<int>(mean.size()); }

    static Preprocess from_manifest(Json const& manifest) {
        Json const& steps = manifest["preprocess"];
        Preprocess result;
        Json const& resize = steps["resize"];
        if (resize.kind() == Json::Kind::list) {
            result.resize_height = static_cast<int>(resize.list().at(0).integer());
            result.resize_width = static_cast<int>(resize.list().at(1).integer());
        } else if (!resize.is_null()) {
            result.shorter_side = static_cast<int>(resize.integer());
        }
        result.height = static_cast<int>(steps["crop"].list().at(0).integer());
        result.width = static_cast<int>(steps["crop"].list().at(1).integer());
        result.interpolation = steps["interpolation"].text();
        if (!steps["antialias"].boolean()) {
            throw std::runtime_error("this example resizes with antialias alone, and the bundle without; use resnet-deploy");
        }
        for (Json const& value : steps["mean"].list()) {
            result.mean.push_back(static_cast<float>(value.number()));
        }
        for (Json const& value : steps["std"].list()) {
            result.std.push_back(static_cast<float>(value.number()));
        }
        result.bgr = steps.has("channels_order") && steps["channels_order"].text() == "bgr";
        if (result.channels() != 1 && result.channels() != 3) {
            throw std::runtime_error("this example reads pictures of 1 or 3 channels, and the model takes " +
                                     std::to_string(result.channels()));
        }
        return result;
    }
};

// Grey from colour as Pillow makes it (ITU-R 601-2), or grey in each channel.
inline Picture with_channels(Picture const& picture, int channels) {
    if (picture.channels == channels) {
        return picture;
    }
    Picture result(picture.height, picture.width, channels);
    for (int row = 0; row < picture.height; ++row) {
        for (int column = 0; column < picture.width; ++column) {
            if (channels == 3) {
                for (int channel = 0; channel < 3; ++channel) {
                    result.at(row, column, channel) = picture.at(row, column, 0);
                }
            } else {
                result.at(row, column, 0) =
                    static_cast<uint8_t>((picture.at(row, column, 0) * 19595 + picture.at(row, column, 1) * 38470 +
                                          picture.at(row, column, 2) * 7471 + 0x8000) >>
                                         16);
            }
        }
    }
    return result;
}

namespace detail {

inline double const pi = 3.14159265358979323846;

inline double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * pi) / (x * pi); }

inline double filter_value(std::string const& name, double x) {
    if (name == "lanczos") {
        return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    }
    x = std::abs(x);
    if (name == "bilinear") {
        return x < 1.0 ? 1.0 - x : 0.0;
    }
    double const a = -0.5;
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    }
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

inline double filter_support(std::string const& name) {
    return name == "bilinear" ? 1.0 : name == "bicubic" ? 2.0 : 3.0;
}

// From which old pixel on a new one is made, and the old ones' coefficients, times 2^22.
struct Window {
    int first = 0;
    std::vector<int32_t> coefficients;
};

constexpr int bits = 22;

inline std::vector<Window> windows(int before, int after, std::string const& filter) {
    std::vector<Window> result(static_cast<size_t>(after));
    if (filter == "nearest") {
        double const step = static_cast<double>(before) / after;
        double place = step * 0.5;
        for (Window& window : result) {
            window.first = std::min(static_cast<int>(place), before - 1);
            window.coefficients = {1 << bits};
            place += step;
        }
        return result;
    }
    double const scale = static_cast<double>(before) / after, reach = std::max(scale, 1.0);
    double const support = filter_support(filter) * reach, inverse = 1.0 / reach;
    for (int i = 0; i < after; ++i) {
        double const centre = (i + 0.5) * scale;
        int const first = std::max(static_cast<int>(centre - support + 0.5), 0);
        int const last = std::min(static_cast<int>(centre + support + 0.5), before);
        std::vector<double> weights;
        double total = 0.0;
        for (int x = 0; x < last - first; ++x) {
            weights.push_back(filter_value(filter, (x + first - centre + 0.5) * inverse));
            total += weights.back();
        }
        Window& window = result[static_cast<size_t>(i)];
        window.first = first;
        for (double weight : weights) {
            if (total != 0.0) {
                weight /= total;
            }
            window.coefficients.push_back(static_cast<int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << bits)));
        }
    }
    return result;
}

inline uint8_t level(int64_t sum) {
    int64_t const value = sum >> bits;
    return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

inline Picture resized_columns(Picture const& picture, int width, std::string const& filter) {
    if (width == picture.width) {
        return picture;
    }
    Picture result(picture.height, width, picture.channels);
    std::vector<Window> const all = windows(picture.width, width, filter);
    for (int row = 0; row < picture.height; ++row) {
        for (int column = 0; column < width; ++column) {
            Window const& window = all[static_cast<size_t>(column)];
            for (int channel = 0; channel < picture.channels; ++channel) {
                int64_t sum = 1 << (bits - 1);
                for (size_t x = 0; x < window.coefficients.size(); ++x) {
                    sum += int64_t{picture.at(row, window.first + static_cast<int>(x), channel)} * window.coefficients[x];
                }
                result.at(row, column, channel) = level(sum);
            }
        }
    }
    return result;
}

inline Picture resized_rows(Picture const& picture, int height, std::string const& filter) {
    if (height == picture.height) {
        return picture;
    }
    Picture result(height, picture.width, picture.channels);
    std::vector<Window> const all = windows(picture.height, height, filter);
    for (int row = 0; row < height; ++row) {
        Window const& window = all[static_cast<size_t>(row)];
        for (int column = 0; column < picture.width; ++column) {
            for (int channel = 0; channel < picture.channels; ++channel) {
                int64_t sum = 1 << (bits - 1);
                for (size_t x = 0; x < window.coefficients.size(); ++x) {
                    sum += int64_t{picture.at(window.first + static_cast<int>(x), column, channel)} * window.coefficients[x];
                }
                result.at(row, column, channel) = level(sum);
            }
        }
    }
    return result;
}

// Where a centred crop begins, half a pixel rounded to even; negative where it is larger than the picture.
inline int offset(int size, int crop) {
    if (size < crop) {
        return -((crop - size) / 2);
    }
    int const half = (size - crop) / 2;
    return (size - crop) % 2 == 0 ? half : half + half % 2;
}

}  // namespace detail

// The resized picture's centre, black beyond its borders.
inline Picture pixels_of(Picture const& given, Preprocess const& steps) {
    Picture picture = with_channels(given, steps.channels());
    int height = steps.resize_height, width = steps.resize_width;
    if (steps.shorter_side > 0) {
        int const shorter = std::min(picture.height, picture.width), longer = std::max(picture.height, picture.width);
        int const scaled = static_cast<int>(static_cast<double>(int64_t{steps.shorter_side} * longer) / shorter);
        height = picture.width <= picture.height ? scaled : steps.shorter_side;
        width = picture.width <= picture.height ? steps.shorter_side : scaled;
    }
    if (height > 0) {
        if (int64_t{width} * std::max(height, picture.height) > int64_t{1} << 24) {
            throw std::runtime_error("the picture is so long that resizing it takes too much memory; cut it");
        }
        picture = detail::resized_columns(picture, width, steps.interpolation);
        picture = detail::resized_rows(picture, height, steps.interpolation);
    }
    int const left = detail::offset(picture.width, steps.width), top = detail::offset(picture.height, steps.height);
    Picture result(steps.height, steps.width, picture.channels);
    for (int row = 0; row < steps.height; ++row) {
        for (int column = 0; column < steps.width; ++column) {
            int const y = row + top, x = column + left;
            if (y >= 0 && x >= 0 && y < picture.height && x < picture.width) {
                for (int channel = 0; channel < picture.channels; ++channel) {
                    result.at(row, column, channel) = picture.at(y, x, channel);
                }
            }
        }
    }
    return result;
}

// Pixels as the model takes them, channels first and in its order: (level / 255 - mean) / std in single precision.
inline std::vector<float> normalised(Picture const& pixels, Preprocess const& steps) {
    std::vector<float> result;
    result.reserve(pixels.pixels.size());
    for (int place = 0; place < pixels.channels; ++place) {
        int const channel = steps.bgr ? pixels.channels - 1 - place : place;
        float const mean = steps.mean[static_cast<size_t>(channel)], std = steps.std[static_cast<size_t>(channel)];
        for (int row = 0; row < pixels.height; ++row) {
            for (int column = 0; column < pixels.width; ++column) {
                float value = static_cast<float>(pixels.at(row, column, channel));
                value /= 255.0f;
                value -= mean;
                value /= std;
                result.push_back(value);
            }
        }
    }
    return result;
}

}  // namespace resnet
