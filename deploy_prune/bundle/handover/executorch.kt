// $artifact on Android: depend on org.pytorch:executorch-android, copy the file from assets/ to the app's storage.
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** path: of $artifact. */
class Network(path: String) {
    private val module = Module.load(path)

    /** All outputs for one picture, in order. Compare with sample/expected_0.npy and its like; Decode.kt reads them. */
    fun outputs(picture: Picture): List<FloatArray> {
        val shape = longArrayOf(1, CHANNELS.toLong(), HEIGHT.toLong(), WIDTH.toLong())
        val fed = Tensor.fromBlob(preprocess(picture), shape)
        return module.forward(EValue.from(fed)).map { it.toTensor().dataAsFloatArray }
    }
}
