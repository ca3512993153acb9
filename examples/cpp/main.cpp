// Classify pictures with an engine that `resnet-deploy build` made: resnet_classify BUNDLE ENGINE PICTURE.ppm...
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "engine.hpp"

namespace {

constexpr int kTop = 5;

std::vector<float> probabilities_of(std::vector<float> scores, bool are_probabilities) {
    if (are_probabilities) {
        return scores;
    }
    const float largest = *std::max_element(scores.begin(), scores.end());
    float sum = 0;
    for (float& score : scores) {
        sum += score = std::exp(score - largest);
    }
    for (float& score : scores) {
        score /= sum;
    }
    return scores;
}

std::vector<float> scores_of(Engine& engine, const Bundle& bundle, const Picture& picture) {
    if (!bundle.takes_pixels) {
        const Picture cut = pixels_of(picture, bundle.preprocess);
        const std::vector<float> planes = normalised(cut, bundle.preprocess);
        return engine.run(planes.data(), planes.size() * sizeof(float), {cut.channels, cut.height, cut.width});
    }
    const Picture fed = bundle.any_size ? with_channels(picture, bundle.preprocess.channels())
                                        : pixels_of(picture, bundle.preprocess);
    return engine.run(fed.pixels.data(), fed.pixels.size(), {fed.height, fed.width, fed.channels});
}

void print_top(const std::string& path, const std::vector<float>& probabilities, const Bundle& bundle) {
    std::vector<int> order(probabilities.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return probabilities[a] > probabilities[b]; });
    order.resize(std::min<std::size_t>(order.size(), kTop));
    std::printf("%s\n", path.c_str());
    for (const int place : order) {
        const bool named = place < static_cast<int>(bundle.labels.size());
        const std::string label = named ? bundle.labels[place] : "class " + std::to_string(place);
        std::printf("  %6.2f%%  %s\n", 100 * probabilities[place], label.c_str());
    }
}

}  // namespace

int main(int count, char** words) {
    if (count < 4) {
        std::fprintf(stderr, "usage: resnet_classify BUNDLE ENGINE PICTURE.ppm...\n");
        return 2;
    }
    try {
        const Bundle bundle = read_bundle(words[1]);
        Engine engine(read_engine(words[2], bundle, this_machine()), bundle);
        for (int i = 3; i < count; ++i) {
            const std::vector<float> scores = scores_of(engine, bundle, read_picture(words[i]));
            print_top(words[i], probabilities_of(scores, bundle.gives_probabilities), bundle);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
