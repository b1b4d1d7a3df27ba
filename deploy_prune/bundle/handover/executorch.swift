// $artifact on iOS: add github.com/pytorch/executorch as a Swift package, products executorch and backend_xnnpack.
import ExecuTorch

/// All outputs for one picture, in order. Compare with sample/expected_0.npy and its like; Decode.swift reads them.
/// module: `Module(filePath: path)`, where path is that of $artifact in the app's bundle.
func outputs(_ picture: Picture, module: Module) throws -> [[Float]] {
  let x = Tensor<Float>(preprocess(picture), shape: [1, channels, height, width])
  return try module.forward(x).map { value in
    let found: Tensor<Float> = value.tensor()!
    return found.scalars()
  }
}
