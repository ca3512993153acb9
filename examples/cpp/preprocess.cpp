// What a bundle's preprocessing makes of a picture, as raw numbers: float32 (channels, height, width), or with --pixels
// uint8 (height, width, channels). Needs neither CUDA nor TensorRT.
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "preprocess.hpp"

int main(int count, char** words) {
    bool const as_pixels = count == 5 && std::string(words[4]) == "--pixels";
    if (count != 4 && !as_pixels) {
        std::cerr << "usage: preprocess MANIFEST.json PICTURE.ppm OUT.raw [--pixels]\n";
        return 2;
    }
    try {
        auto const manifest = resnet::Json::parse(resnet::read_file(words[1]));
        auto const steps = resnet::Preprocess::from_manifest(manifest);
        auto const pixels = resnet::pixels_of(resnet::read_picture(words[2]), steps);
        std::ofstream out(words[3], std::ios::binary);
        if (as_pixels) {
            out.write(reinterpret_cast<char const*>(pixels.pixels.data()), static_cast<std::streamsize>(pixels.pixels.size()));
        } else {
            std::vector<float> const values = resnet::normalised(pixels, steps);
            out.write(reinterpret_cast<char const*>(values.data()),
                      static_cast<std::streamsize>(values.size() * sizeof(float)));
        }
        if (!out.flush()) {
            throw std::runtime_error(std::string("cannot write ") + words[3]);
        }
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}
