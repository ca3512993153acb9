// The input that examples/cpp makes of a picture, as float32 or uint8 on stdout: prepared MANIFEST.json PICTURE.ppm pixels|normalised
#include <cstdio>
#include <cstring>

#include "bundle.hpp"

int main(int, char** words) {
    const Preprocess steps = Preprocess::from_manifest(read_json(words[1])["preprocess"]);
    const Picture picture = pixels_of(read_picture(words[2]), steps);
    if (std::strcmp(words[3], "pixels") == 0) {
        std::fwrite(picture.pixels.data(), 1, picture.pixels.size(), stdout);
        return 0;
    }
    const std::vector<float> planes = normalised(picture, steps);
    std::fwrite(planes.data(), sizeof(float), planes.size(), stdout);
    return 0;
}
