// What a bundle's manifest and an engine's sidecar say, and the checks before an engine is loaded: those of `resnet-deploy run`, except for the seal.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.hpp"
#include "picture.hpp"
#include "preprocess.hpp"
#include "sha256.hpp"

struct Bundle {
    std::string input, output;
    bool takes_pixels = false;  // uint8 (batch, height, width, channels), with the preprocessing inside
    bool any_size = false;      // and resizes them too
    bool gives_probabilities = false;
    Preprocess preprocess;
    std::string onnx_sha256;
    std::vector<std::string> labels;  // empty where the bundle has none
};

inline Json read_json(const std::string& path) {
    try {
        return JsonReader::read(read_file(path));
    } catch (const std::exception& error) {
        throw std::runtime_error(path + ": " + error.what());
    }
}

// Throws std::runtime_error if the folder is no bundle of a classifier.
inline Bundle read_bundle(const std::string& folder) {
    const Json manifest = read_json(folder + "/manifest.json");
    const Json& input = manifest["inputs"].as_array().at(0);
    const Json& output = manifest["outputs"].as_array().at(0);
    Bundle made;
    made.input = input["name"].as_text();
    made.output = output["name"].as_text();
    made.gives_probabilities = made.output == "probabilities";
    if (manifest["outputs"].array.size() != 1 || (made.output != "logits" && !made.gives_probabilities)) {
        throw std::runtime_error(folder + ": expected a classifier, got a model whose output is " + made.output);
    }
    made.takes_pixels = input["dtype"].as_text() == "uint8";
    made.any_size = made.takes_pixels && input["shape"].as_array().at(1).kind == Json::Kind::text;
    made.preprocess = Preprocess::from_manifest(manifest["preprocess"]);
    made.onnx_sha256 = manifest["files"]["model.onnx"]["sha256"].as_text();
    const Json& files = manifest["files"];
    if (files.object.count("labels.txt") != 0) {
        const std::string text = read_file(folder + "/labels.txt");
        if (sha256_of(text) != files["labels.txt"]["sha256"].as_text()) {
            throw std::runtime_error(folder + "/labels.txt was changed since the export");
        }
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            made.labels.push_back(line);
        }
    }
    return made;
}

// The machine that is to run an engine: the version of TensorRT (major, minor, patch), and the GPU as `sm87`.
struct Here {
    int version[3];
    std::string target;
};

struct EngineFile {
    std::string plan;
    int smallest_batch = 1;
};

// Read an engine that may be loaded here. Throws std::runtime_error if it was changed, or is of another bundle, TensorRT or GPU.
inline EngineFile read_engine(const std::string& path, const Bundle& bundle, const Here& here) {
    const std::string rebuild = "; build it here with: resnet-deploy build BUNDLE";
    const Json sidecar = read_json(path.substr(0, path.rfind('.')) + ".json");
    const auto check = [&](bool holds, const std::string& problem) {
        if (!holds) {
            throw std::runtime_error(path + " " + problem + rebuild);
        }
    };
    check(sidecar["backend"].as_text() == "tensorrt", "is an engine for " + sidecar["backend"].as_text());
    check(sidecar["onnx_sha256"].as_text() == bundle.onnx_sha256, "was built from another model than this bundle's");
    const std::string version = sidecar["version"].as_text();
    std::istringstream numbers(version);
    for (const int wanted : here.version) {
        int number = -1;
        char dot = 0;
        numbers >> number;
        numbers >> dot;
        check(number == wanted, "was built with TensorRT " + version + ", and engines load in the same version alone");
    }
    bool fits = false;
    for (const Json& target : sidecar["targets"].as_array()) {
        fits = fits || target.as_text() == here.target;
    }
    check(fits, "was built for another GPU than this " + here.target);
    const Json& options = sidecar["options"];
    for (const char* name : {"strip_weights", "version_compatible"}) {
        check(options.object.count(name) == 0 || !options[name].boolean,
              std::string("was built with ") + name + ", which this example does not load");
    }
    EngineFile made{read_file(path), static_cast<int>(sidecar["batch"]["min"].as_number())};
    check(sha256_of(made.plan) == sidecar["engine_sha256"].as_text(), "was changed after it was built");
    return made;
}
