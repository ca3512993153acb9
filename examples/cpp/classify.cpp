// Classify a picture with an engine of a bundle: what `resnet-deploy run BUNDLE PICTURE --backend tensorrt` prints.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"
#include "json.hpp"
#include "picture.hpp"
#include "preprocess.hpp"

namespace {

std::vector<std::string> labels_of(std::string const& bundle, resnet::Json const& manifest) {
    std::vector<std::string> labels;
    if (manifest["files"].has("labels.txt")) {
        std::istringstream text(resnet::read_file(bundle + "/labels.txt"));
        for (std::string line; std::getline(text, line);) {
            labels.push_back(line);
        }
    }
    return labels;
}

// Of logits their softmax, of a single one its sigmoid; probabilities are left as they are.
std::vector<double> probabilities_of(std::vector<float> const& scores, bool are_logits) {
    std::vector<double> result(scores.begin(), scores.end());
    if (!std::all_of(result.begin(), result.end(), [](double one) { return std::isfinite(one); })) {
        throw std::runtime_error("the model gives numbers that are not finite; see what resnet-deploy check says");
    }
    if (!are_logits) {
        return result;
    }
    if (result.size() == 1) {
        return {0.5 * (1 + std::tanh(0.5 * result[0]))};
    }
    double const largest = *std::max_element(result.begin(), result.end());
    for (double& one : result) {
        one = std::exp(one - largest);
    }
    double const total = std::accumulate(result.begin(), result.end(), 0.0);
    for (double& one : result) {
        one /= total;
    }
    return result;
}

void classify(std::string const& bundle, std::string const& engine_path, std::string const& picture_path, size_t top) {
    auto const manifest = resnet::Json::parse(resnet::read_file(bundle + "/manifest.json"));
    auto const steps = resnet::Preprocess::from_manifest(manifest);
    resnet::Json const& input = manifest["inputs"].list().at(0);
    resnet::Json const& output = manifest["outputs"].list().at(0);
    std::string const& output_name = output["name"].text();
    if (output_name != "logits" && output_name != "probabilities") {
        throw std::runtime_error("expected a classifier, got a model that gives '" + output_name + "'");
    }
    resnet::Engine engine(engine_path, manifest);
    auto const picture = resnet::read_picture(picture_path);
    bool const takes_pixels = input["dtype"].text() == "uint8";
    bool const any_size = takes_pixels && input["shape"].list().at(1).kind() == resnet::Json::Kind::text;
    auto const pixels =
        any_size ? resnet::with_channels(picture, steps.channels()) : resnet::pixels_of(picture, steps);
    // The smallest batch that the engine takes: the picture is its first row, and the others are zeros.
    auto const rows = static_cast<size_t>(manifest["batch"]["min"].integer());
    auto const classes = static_cast<size_t>(output["shape"].list().at(1).integer());
    std::vector<int64_t> shape = {static_cast<int64_t>(rows)};
    std::vector<float> scores;
    if (takes_pixels) {
        shape.insert(shape.end(), {pixels.height, pixels.width, pixels.channels});
        std::vector<uint8_t> values = pixels.pixels;
        values.resize(rows * values.size());
        scores = engine.run(input["name"].text(), shape, values.data(), values.size(), output_name, rows * classes);
    } else {
        shape.insert(shape.end(), {pixels.channels, pixels.height, pixels.width});
        std::vector<float> values = resnet::normalised(pixels, steps);
        values.resize(rows * values.size());
        scores = engine.run(input["name"].text(), shape, values.data(), values.size() * sizeof(float), output_name,
                            rows * classes);
    }
    scores.resize(classes);
    std::vector<double> const likely = probabilities_of(scores, output_name == "logits");
    std::vector<size_t> order(classes);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t one, size_t other) { return likely[one] > likely[other]; });
    std::vector<std::string> const labels = labels_of(bundle, manifest);
    std::cout << picture_path << '\n';
    for (size_t place = 0; place < std::min(top, classes); ++place) {
        size_t const index = order[place];
        std::string const name = index < labels.size() ? labels[index] : std::to_string(index);
        std::printf("  %6.2f%%  %s\n", 100 * likely[index], name.c_str());
    }
}

}  // namespace

int main(int count, char** words) {
    if (count < 4 || count > 5) {
        std::cerr << "usage: classify BUNDLE ENGINE PICTURE.ppm [TOP]\n";
        return 2;
    }
    try {
        int const top = count == 5 ? std::atoi(words[4]) : 5;
        classify(words[1], words[2], words[3], static_cast<size_t>(std::max(top, 1)));
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}
