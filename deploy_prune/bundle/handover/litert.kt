// $artifact on Android: depend on com.google.ai.edge.litert:litert, put the file into assets/, not compressed.
import android.content.Context
import java.io.FileInputStream
import java.nio.FloatBuffer
import java.nio.channels.FileChannel
import org.tensorflow.lite.Interpreter

private val OUTPUT_SIZES = intArrayOf($output_sizes)

class Network(context: Context) : AutoCloseable {
    private val interpreter: Interpreter

    init {
        val asset = context.assets.openFd("$artifact")
        val file = FileInputStream(asset.fileDescriptor).channel
        val bytes = file.map(FileChannel.MapMode.READ_ONLY, asset.startOffset, asset.declaredLength)
        interpreter = Interpreter(bytes, Interpreter.Options().setNumThreads(1))
    }

    /** All outputs for one picture, in order. Compare with sample/expected_0.npy and its like; Decode.kt reads them. */
    fun outputs(picture: Picture): List<FloatArray> {
        val fed = mapOf<String, Any>("args_0" to FloatBuffer.wrap(preprocess(picture)))
        val found = OUTPUT_SIZES.map { FloatBuffer.allocate(it) }
        val named = mutableMapOf<String, Any>()
        for (i in found.indices) named["output_" + i] = found[i]
        interpreter.runSignature(fed, named)
        return found.map { it.array() }
    }

    override fun close() = interpreter.close()
}
